"""Losses that compare the positive with all its negatives at once."""

import math

from torch import Tensor

from distrec.losses.base import Scores, log_sum_exp, losses, softplus
from distrec.losses.config import LossConfig


@losses.register("ssm")
def ssm(scores: Scores, config: LossConfig) -> Tensor:
    """Return -log( e^{s_ui/t} / (e^{s_ui/t} + sum_j e^{s_uj/t}) ), sampled softmax or InfoNCE (Wu et al., TOIS 2024).

    With `log_q`, each negative has importance weight 1 / (N q_j): the sum is then an unbiased estimate of the sum over
    all negatives (Bengio and Senecal, 2008). Computed as softplus(logsumexp - s_ui/t), which does not overflow.
    """
    negative_BN, t = scores.negative_BN, config.temperature
    if negative_BN.shape[1] == 0:
        return scores.positive_B * 0.0
    if scores.log_q_BN is not None:
        negative_BN = negative_BN - t * (scores.log_q_BN + math.log(negative_BN.shape[1]))
    return softplus(log_sum_exp(negative_BN, t) - scores.positive_B / t)
