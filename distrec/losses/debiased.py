"""Losses that correct uniform negatives for the positives among them (MINE paper, Sec. 3 and 4).

tau is the share of the catalogue that a user likes: of the items that it does not know, some are positives too.
Negatives are drawn from all items, known positives included: the correction subtracts them.
"""

import math
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from distrec.losses.base import Loss, LossInputs, losses
from distrec.losses.row_sums import log_sum_exp, softplus


class _Debiased(Loss):
    extra_positives: int = Field(10, ge=1)
    """Extra positives M of each pair, drawn from the user's training items with replacement."""
    form: Literal["ratio", "topk"] = "ratio"
    """tau is (1 + alpha) |I_u| / |I| (`ratio`) or (|I_u| + k) / |I| (`topk`), I_u the user's training items."""
    alpha: float = Field(0.0, ge=0)
    """For `ratio`: unknown positives as a multiple of the known ones; not published (search 0, 0.5, 1, 2)."""
    k: int = Field(0, ge=0)
    """For `topk`: unknown positives of each user; not published (search 0, 20, 50, 100)."""
    user_mean: bool = False
    """Weigh pairs by 1 / |I_u|, so that the loss is a mean over users, as printed, and not over pairs."""

    reads = ("positive_B", "negative_BN", "extra_BM", "degree_B")
    draws_known_positives = True

    def unused(self) -> set[str]:
        return {"k"} if self.form == "ratio" else {"alpha"}

    def tau(self, step: LossInputs) -> Tensor:
        """Return tau of each pair's user, (B,), at most 1 - 1/|I|."""
        liked_B = step.degree_B * (1 + self.alpha) if self.form == "ratio" else step.degree_B + self.k
        return (liked_B / step.items).clamp(max=1 - 1 / step.items).to(step.positive_B.dtype)

    def weigh(self, loss_B: Tensor, step: LossInputs) -> Tensor:
        """Return the losses, weighted to a mean over users if configured."""
        return loss_B * (step.mean_degree / step.degree_B) if self.user_mean else loss_B


@losses.register("debiased_infonce")
class DebiasedInfoNCE(_Debiased):
    """-s_ui/t + log(e^{s_ui/t} + lam f), f = max{(mean_j e^{s_uj/t} - tau mean_k e^{s_uk/t}) / (1 - tau), e^{-1/t}}.

    MINE paper, Eq. 6 and 7, after Chuang et al., NeurIPS 2020. At the floor f has no gradient.
    """

    temperature: float = Field(0.2, gt=0)
    """Temperature t."""
    negative_weight: float | None = Field(None, gt=0)
    """Weight lam of the negatives; null: their number N."""

    similarity = "cosine"

    def per_pair(self, step: LossInputs) -> Tensor:
        t, tau_B = self.temperature, self.tau(step)
        # In logarithms, as e^{s/t} has no range in float32 at t = 0.01.
        negative_B, extra_B = (
            log_sum_exp(scores, t) - math.log(max(1, scores.shape[1])) for scores in (step.negative_BN, step.extra_BM)
        )
        part_B = tau_B.log() + extra_B - negative_B  # log of the part of the negatives' mean that is subtracted
        rest_B = -torch.expm1(part_B.clamp(max=-torch.finfo(part_B.dtype).tiny))
        log_f_B = torch.where(part_B < 0, negative_B + rest_B.log() - torch.log1p(-tau_B), -1 / t).clamp(min=-1 / t)
        weight = self.negative_weight or step.negative_BN.shape[1]
        return self.weigh(softplus(math.log(weight) + log_f_B - step.positive_B / t), step)


@losses.register("debiased_mse")
class DebiasedSquaredError(_Debiased):
    """tau (1 - s_ui)^2 + lam (mean_j s_uj^2 - tau mean_k s_uk^2) (MINE paper, Eq. 21)."""

    negative_weight: float = Field(0.5, gt=0)
    """Weight lam of the negatives; not published."""

    def per_pair(self, step: LossInputs) -> Tensor:
        tau_B = self.tau(step)
        corrected_B = step.negative_BN.square().mean(1) - tau_B * step.extra_BM.square().mean(1)
        return self.weigh(tau_B * (1 - step.positive_B).square() + self.negative_weight * corrected_B, step)


@losses.register("debiased_ccl")
class DebiasedCosineContrastive(_Debiased):
    """tau (1 - s_ui) + lam (mean_j [s_uj - m]+ - tau mean_k [s_uk - m]+) on cosines (MINE paper, Eq. 22).

    tau times `ccl` of weight lam / tau, less the correction.
    """

    margin: float = Field(0.9, ge=-1, le=1)
    """Margin m: negatives that score less have no gradient."""
    negative_weight: float = Field(0.7, gt=0)
    """Weight lam of the negatives; published 0.4 (Yelp2018), 0.7 (Gowalla), 0.6 (Amazon-Book)."""

    similarity = "cosine"

    def per_pair(self, step: LossInputs) -> Tensor:
        tau_B = self.tau(step)
        negative_B, extra_B = ((s - self.margin).clamp(min=0).mean(1) for s in (step.negative_BN, step.extra_BM))
        return self.weigh(tau_B * (1 - step.positive_B) + self.negative_weight * (negative_B - tau_B * extra_B), step)
