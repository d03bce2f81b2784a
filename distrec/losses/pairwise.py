"""Losses that compare the positive with one negative at a time."""

import torch
from torch import Tensor

from distrec.losses.base import Scores, losses, softplus
from distrec.losses.config import LossConfig


@losses.register("bpr")
def bpr(scores: Scores, config: LossConfig) -> Tensor:
    """Return mean_j softplus(s_uj - s_ui) over the negatives j of each pair (Rendle et al., UAI 2009).

    softplus, not log(sigmoid + epsilon), keeps the gradient of the worst-ranked pairs.
    """
    counts_BN = scores.negative_BN > -torch.inf
    loss_BN = softplus(scores.negative_BN - scores.positive_B[:, None])  # 0 at -inf
    return loss_BN.sum(1) / counts_BN.sum(1).clamp(min=1)
