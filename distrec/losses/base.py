"""Losses on scores: what they see, and the table of their names."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from distrec.core.buffer_pool import empty
from distrec.core.registry import Registry
from distrec.losses.config import LossConfig


@dataclass(frozen=True)
class Scores:
    """The scores of one worker's pairs. A negative at -inf does not count: it is a known positive of that user."""

    positive_B: torch.Tensor
    negative_BN: torch.Tensor
    log_q_BN: torch.Tensor | None = None
    """log of the probability that each negative is drawn with, (B, N) or (1, N), if the configuration asks for it."""


Loss = Callable[[Scores, LossConfig], torch.Tensor]
"""Loss of each pair, (B,). The trainer averages over the pairs of all workers."""

losses: Registry[Loss] = Registry("loss")


def softplus(x: torch.Tensor) -> torch.Tensor:
    """log(1 + e^x), elementwise. torch's own goes over to x at 20, which is too early for float64."""
    return torch.nn.functional.softplus(x, threshold=40.0)


def log_sum_exp(scores_BN: torch.Tensor, temperature: float) -> torch.Tensor:
    """log sum_j e^{s_j / t} of each pair, (B,); -inf where nothing counts.

    Equals `torch.logsumexp(scores_BN / temperature, 1)`, in half the time: it keeps the exponentials for the backward
    pass, and what is made from the scores is made in one place in memory.
    """
    return _LogSumExp.apply(scores_BN, temperature)


class _LogSumExp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, scores_BN: torch.Tensor, temperature: float) -> torch.Tensor:
        # Where all scores are -inf, so would be the highest, and the difference no number.
        highest_B1 = scores_BN.amax(1, keepdim=True).clamp_(min=torch.finfo(scores_BN.dtype).min)
        share_BN = torch.sub(scores_BN, highest_B1, out=empty(scores_BN.shape, scores_BN))
        share_BN.mul_(1 / temperature).exp_()
        sum_B1 = share_BN.sum(1, keepdim=True)
        # Not `save_for_backward`, which forbids what is done here: gradients take the place of the exponentials.
        ctx.kept, ctx.temperature = (share_BN, sum_B1), temperature
        return (sum_B1.log() + highest_B1 / temperature).squeeze(1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_B: torch.Tensor) -> tuple[torch.Tensor, None]:
        if ctx.kept is None:
            raise RuntimeError("log_sum_exp has no second backward pass: the first one wrote over what it kept")
        (share_BN, sum_B1), ctx.kept = ctx.kept, None
        sum_B1 = sum_B1.clamp(min=torch.finfo(sum_B1.dtype).tiny)
        return share_BN.mul_(grad_B[:, None] / (sum_B1 * ctx.temperature)), None
