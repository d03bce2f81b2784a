"""Losses that compare the positive with all its negatives at once."""

import math

import torch

from distrec.losses.config import LossConfig
from distrec.losses.loss import Scores, losses, softplus


@losses.register("ssm")
def ssm(scores: Scores, config: LossConfig) -> torch.Tensor:
    """-log( e^{s_ui/t} / (e^{s_ui/t} + sum_j e^{s_uj/t}) ), sampled softmax or InfoNCE (Wu et al., TOIS 2024).

    With `log_q`, each negative stands for 1 / (N q_j) items: the sum is then an unbiased estimate of the one over all
    negatives (Bengio and Senecal, 2008). Written as softplus(logsumexp - s_ui/t), which does not overflow.
    """
    negative_BN = scores.negative_BN / config.temperature
    if scores.log_q_BN is not None:
        negative_BN = negative_BN - scores.log_q_BN - math.log(max(1, negative_BN.shape[1]))
    if negative_BN.shape[1] == 0:
        return scores.positive_B * 0.0
    return softplus(torch.logsumexp(negative_BN, 1) - scores.positive_B / config.temperature)
