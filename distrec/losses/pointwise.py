"""Pointwise losses: each score has a target, 1 for the positive and 0 for negatives."""

from pydantic import Field
from torch import Tensor

from distrec.losses.base import Loss, LossInputs, losses
from distrec.losses.row_sums import mean_of_negatives, softplus, softplus_, square_


@losses.register("mse")
class SquaredError(Loss):
    """(1 - s_ui)^2 + lam mean_j s_uj^2 (MINE paper, Eq. 17 and 20)."""

    negative_weight: float = Field(1.0, gt=0)
    """Weight lam of the negatives' mean; not published."""

    reads = ("positive_B", "negative_BN", "unmasked_B")

    def per_pair(self, step: LossInputs) -> Tensor:
        negatives_B = mean_of_negatives(square_, step.negative_BN, step.unmasked_B)
        return (1 - step.positive_B).square() + self.negative_weight * negatives_B


@losses.register("bce")
class CrossEntropy(Loss):
    """softplus(-s_ui) + lam mean_j softplus(s_uj), binary cross-entropy (NeuMF, WWW 2017: lam = N = 4)."""

    negative_weight: float = Field(1.0, gt=0)
    """Weight lam of the negatives' mean."""

    reads = ("positive_B", "negative_BN", "unmasked_B")

    def per_pair(self, step: LossInputs) -> Tensor:
        negatives_B = mean_of_negatives(softplus_, step.negative_BN, step.unmasked_B)
        return softplus(-step.positive_B) + self.negative_weight * negatives_B
