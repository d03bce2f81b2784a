"""Losses that compare the positive with one negative at a time."""

from torch import Tensor

from distrec.losses.base import Loss, LossInputs, losses
from distrec.losses.row_sums import mean_of_negatives, softplus_


@losses.register("bpr")
class BPR(Loss):
    """mean_j softplus(s_uj - s_ui) over the negatives j of each pair (Rendle et al., UAI 2009).

    softplus, not log(sigmoid + epsilon), keeps the gradient of the worst-ranked pairs.
    """

    reads = ("positive_B", "negative_BN", "unmasked_B")

    def per_pair(self, step: LossInputs) -> Tensor:
        return mean_of_negatives(softplus_, step.negative_BN, step.unmasked_B, step.positive_B)
