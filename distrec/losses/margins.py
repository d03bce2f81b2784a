"""Losses with a margin: hinge and its relatives on scores, and those on distances.

A masked negative scores -inf, at which each of their terms is 0. Means are over the unmasked negatives.
"""

from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from distrec.losses.base import Loss, LossInputs, losses
from distrec.losses.row_sums import RowFunction, hinge_, mean_of_negatives, sum_of_negatives

_DISTANCES = ("positive_B", "negative_BN", "unmasked_B", "user_norm2_B", "positive_norm2_B", "negative_norm2_BN")
_SMALLEST = 1e-12  # squared distances are clamped to this where a root is taken: it has no derivative at 0


def squared_distance(step: LossInputs) -> Tensor:
    """Return the squared Euclidean distance of the user to the positive, (B,)."""
    return (step.user_norm2_B + step.positive_norm2_B - 2 * step.positive_B).clamp(min=0)


def half_squares(step: LossInputs) -> tuple[Tensor, Tensor]:
    """Return x_BN and c_B such that c - x is half of the squared distance of the user to each negative."""
    half_BN, half_B = step.negative_norm2_BN / 2, step.user_norm2_B / 2
    if half_BN.numel() == 1:  # items of unit length: the scores are x
        return step.negative_BN, half_B + half_BN[0]
    return step.negative_BN - half_BN, half_B


def inside_(margin: float, power: Literal[1, 2]) -> RowFunction:
    """Return f(x) = ([m - d]+)^p of the distance d = sqrt(-2 x)."""

    def function(x_bN: Tensor) -> Tensor:
        squared_bN = x_bN * -2
        distance_bN = squared_bN.clamp(min=_SMALLEST).sqrt_()
        within_bN = (margin - distance_bN).clamp_(min=0)
        sum_b = within_bN.pow(power).sum(1)
        # d falls with x at rate 1 / d, and not at all where it is clamped.
        torch.div(within_bN.sign() if power == 1 else 2 * within_bN, distance_bN, out=x_bN)
        x_bN.masked_fill_(squared_bN < _SMALLEST, 0.0)
        return sum_b

    return function


@losses.register("hinge")
class Hinge(Loss):
    """mean_j [gamma + s_uj - s_ui]+ (SimCE paper, after Eq. 7; MML paper, Table 4)."""

    gamma: float = Field(1.0, ge=0)
    """Margin by which the positive is to score above a negative."""

    reads = ("positive_B", "negative_BN", "unmasked_B")

    def per_pair(self, step: LossInputs) -> Tensor:
        return mean_of_negatives(hinge_, step.negative_BN, step.unmasked_B, step.positive_B - self.gamma)


@losses.register("simce")
class SimCE(Loss):
    """[gamma - s_ui + max_j s_uj]+, the hinge of the hardest negative (SimCE paper, Eq. 7).

    Of equal negatives one alone has a gradient, the first.
    """

    gamma: float = Field(5.0, ge=0)
    """Margin; published 1, 5 and 10."""

    reads = ("positive_B", "negative_BN")

    def per_pair(self, step: LossInputs) -> Tensor:
        if step.negative_BN.shape[1] == 0:
            return step.positive_B * 0.0
        hardest_B = step.negative_BN.max(1).values
        return (self.gamma - step.positive_B + hardest_B).clamp(min=0)


@losses.register("ccl")
class CosineContrastive(Loss):
    """(1 - s_ui) + (w / N) sum_j [s_uj - m]+ on cosines (SimpleX, CIKM 2021; MML paper, Eq. 2; MINE paper, Eq. 18)."""

    margin: float = Field(0.9, ge=-1, le=1)
    """Margin m: negatives that score less have no gradient."""
    weight: float = Field(150.0, gt=0)
    """Weight w of the negatives' mean."""

    reads = ("positive_B", "negative_BN", "unmasked_B")
    similarity = "cosine"

    def per_pair(self, step: LossInputs) -> Tensor:
        negatives_B = mean_of_negatives(hinge_, step.negative_BN, step.unmasked_B, self.margin)
        return 1 - step.positive_B + self.weight * negatives_B


@losses.register("mml")
class MultiMargin(Loss):
    """w_p (1 - s_ui) + (w_n / N) sum_j sum_k w_k [s_uj - m_k]+ on cosines (MML paper, Eq. 7, and w_n of Sec. 4.1)."""

    margins: tuple[float, ...] = (0.7, 0.8, 0.9)
    """Margins m_k; the defaults are those published for Gowalla."""
    margin_weights: tuple[float, ...] = (0.10, 0.15, 0.75)
    """Weights w_k of the margins; the published ones sum to 1."""
    positive_weight: float = Field(1.0, ge=0)
    """Weight w_p of the positive."""
    negative_weight: float = Field(700.0, gt=0)
    """Weight w_n of the negatives' mean."""

    reads = ("positive_B", "negative_BN", "unmasked_B")
    similarity = "cosine"

    @model_validator(mode="after")
    def _one_weight_a_margin(self) -> Self:
        if not self.margins or len(self.margins) != len(self.margin_weights):
            raise ValueError(
                f"{len(self.margins)} margins and {len(self.margin_weights)} margin_weights: give one each"
            )
        return self

    def per_pair(self, step: LossInputs) -> Tensor:
        negatives_B = mean_of_negatives(self._hinges_, step.negative_BN, step.unmasked_B)
        return self.positive_weight * (1 - step.positive_B) + self.negative_weight * negatives_B

    def _hinges_(self, x_bN: Tensor) -> Tensor:
        """f(x) = sum_k w_k [x - m_k]+."""
        sum_b, slope_bN = x_bN.new_zeros(len(x_bN)), torch.zeros_like(x_bN)
        for margin, weight in zip(self.margins, self.margin_weights, strict=True):
            over_bN = x_bN - margin
            sum_b.add_(hinge_(over_bN), alpha=weight)
            slope_bN.add_(over_bN, alpha=weight)
        x_bN.copy_(slope_bN)
        return sum_b


@losses.register("contrastive")
class Contrastive(Loss):
    """(1/2) d_ui^2 + (1/2) sum_j ([m - d_uj]+)^2, d Euclidean distances (Hadsell et al. 2006; MML paper, Eq. 1)."""

    margin: float = Field(1.0, gt=0)
    """Margin m: negatives farther away have no gradient."""

    reads = _DISTANCES

    def per_pair(self, step: LossInputs) -> Tensor:
        return (squared_distance(step) + sum_of_negatives(inside_(self.margin, 2), *half_squares(step))) / 2


@losses.register("triplet")
class Triplet(Loss):
    """mean_j [d_ui^2 - d_uj^2 + m]+, d Euclidean distances (FaceNet, CVPR 2015; MML paper, Eq. 3)."""

    margin: float = Field(0.5, gt=0)
    """Margin m of the squared distances."""

    reads = _DISTANCES

    def per_pair(self, step: LossInputs) -> Tensor:
        x_BN, half_B = half_squares(step)
        half_B = half_B - (squared_distance(step) + self.margin) / 2
        return 2 * mean_of_negatives(hinge_, x_BN, step.unmasked_B, half_B)


@losses.register("generalized_contrastive")
class GeneralizedContrastive(Loss):
    """w_p f+(u, i) + (w_n / N) sum_j [f-(u, i, j, m)]+, s scores and d Euclidean distances (MML paper, Eq. 6)."""

    positive: Literal["zero", "1-s", "d", "d^2"] = "1-s"
    """The positive's term f+."""
    negative: Literal["s-m", "m-d", "d+m"] = "s-m"
    """The term f- of a negative: `s-m` is s_uj - m, `m-d` is m - d_uj, `d+m` is d_ui - d_uj + m."""
    margin: float = 0.9
    """Margin m of the term f-."""
    positive_weight: float = Field(1.0, ge=0)
    """Weight w_p."""
    negative_weight: float = Field(150.0, gt=0)
    """Weight w_n of the mean over negatives."""

    reads = _DISTANCES

    def per_pair(self, step: LossInputs) -> Tensor:
        squared_B, scores_BN = squared_distance(step), step.negative_BN
        distance_B = squared_B.clamp(min=_SMALLEST).sqrt()
        of_positive = {"zero": distance_B * 0, "1-s": 1 - step.positive_B, "d": distance_B, "d^2": squared_B}
        if self.negative == "s-m":
            negatives_B = mean_of_negatives(hinge_, scores_BN, step.unmasked_B, self.margin)
        else:
            x_BN, half_B = half_squares(step)
            if self.negative == "m-d":
                negatives_B = mean_of_negatives(inside_(self.margin, 1), x_BN, step.unmasked_B, half_B)
            else:
                distance_BN = (2 * (half_B[:, None] - x_BN)).clamp(min=_SMALLEST).sqrt()
                negatives_B = mean_of_negatives(hinge_, -distance_BN, step.unmasked_B, -distance_B - self.margin)
        return self.positive_weight * of_positive[self.positive] + self.negative_weight * negatives_B
