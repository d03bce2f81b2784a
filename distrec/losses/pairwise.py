"""Losses that compare the positive with one negative at a time."""

from torch import Tensor

from distrec.losses.base import Loss, LossInputs, losses, softplus


@losses.register("bpr")
class BPR(Loss):
    """mean_j softplus(s_uj - s_ui) over the negatives j of each pair (Rendle et al., UAI 2009).

    softplus, not log(sigmoid + epsilon), keeps the gradient of the worst-ranked pairs.
    """

    reads = ("positive_B", "negative_BN")

    def per_pair(self, step: LossInputs) -> Tensor:
        unmasked_BN = step.negative_BN > -float("inf")
        loss_BN = softplus(step.negative_BN - step.positive_B[:, None])  # 0 at -inf
        return loss_BN.sum(1) / unmasked_BN.sum(1).clamp(min=1)
