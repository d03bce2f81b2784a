"""Losses that compare the positive with all its negatives at once."""

import math

from pydantic import Field
from torch import Tensor

from distrec.losses.base import Loss, LossInputs, losses
from distrec.losses.row_sums import log_sum_exp, softplus


@losses.register("ssm")
class SampledSoftmax(Loss):
    """-log( e^{s_ui/t} / (e^{s_ui/t} + sum_j e^{s_uj/t}) ), sampled softmax or InfoNCE (Wu et al., TOIS 2024).

    With `log_q`, each negative has importance weight 1 / (N q_j), N being the draws for a pair: the sum is then an
    unbiased estimate of the sum over all negatives (Bengio and Senecal, 2008). Computed as
    softplus(logsumexp - s_ui/t), which does not overflow.
    """

    temperature: float = Field(0.1, gt=0)
    """Temperature t; scores are divided by it."""
    log_q: bool = False
    """Correct for the sampling distribution of the negatives: subtract log(N q) from their scores."""

    reads = ("positive_B", "negative_BN")
    sums_exponentials = True

    def needs(self) -> tuple[str, ...]:
        return (*self.reads, "log_q_BN") if self.log_q else self.reads

    def per_pair(self, step: LossInputs) -> Tensor:
        t = self.temperature
        if self.log_q:
            if step.negative_BN.shape[1] == 0:
                return step.positive_B * 0.0
            negative_BN = step.negative_BN - t * (step.log_q_BN + math.log(max(1, step.draws)))
            return softplus(log_sum_exp(negative_BN, t) - step.positive_B / t)
        return softplus(step.log_sum_exp(t) - step.positive_B / t)


@losses.register("infonce")
class InfoNCE(SampledSoftmax):
    """`ssm` under its name in contrastive learning (van den Oord, Li and Vinyals, 2018)."""
