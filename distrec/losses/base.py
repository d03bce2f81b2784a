"""Interface and registry of losses on scores, and functions that several of them use."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from distrec.core.buffer_pool import empty
from distrec.core.registry import Registry
from distrec.losses.config import LossConfig


@dataclass(frozen=True)
class Scores:
    """Scores of one worker's pairs. A negative at -inf is masked, as it is a known positive of that user."""

    positive_B: Tensor
    negative_BN: Tensor
    log_q_BN: Tensor | None = None
    """log of each negative's sampling probability, (B, N) or (1, N), if the configuration asks for it."""


Loss = Callable[[Scores, LossConfig], Tensor]
"""Loss of each pair, (B,). The trainer averages over the pairs of all workers."""

losses: Registry[Loss] = Registry("loss")


def softplus(x: Tensor) -> Tensor:
    """Return log(1 + e^x), elementwise. torch's default switches to x at 20, which is too early for float64."""
    return torch.nn.functional.softplus(x, threshold=40.0)


def log_sum_exp(scores_BN: Tensor, temperature: float) -> Tensor:
    """Return log sum_j e^{s_j / t} of each pair, (B,); -inf where all scores are -inf.

    Equals `torch.logsumexp(scores_BN / temperature, 1)` in half the time: the exponentials are saved for the backward
    pass, and all intermediate results share one buffer.
    """
    return _LogSumExp.apply(scores_BN, temperature)  # type: ignore[no-untyped-call,no-any-return]


class _LogSumExp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, scores_BN: Tensor, temperature: float) -> Tensor:
        # Finite, as -inf - (-inf) is NaN.
        highest_B1 = scores_BN.amax(1, keepdim=True).clamp_(min=torch.finfo(scores_BN.dtype).min)
        numerator_BN = torch.sub(scores_BN, highest_B1, out=empty(scores_BN.shape, scores_BN))
        numerator_BN.mul_(1 / temperature).exp_()
        sum_B1 = numerator_BN.sum(1, keepdim=True)
        # Not `save_for_backward`, which forbids overwriting: the gradients are written over the numerators.
        ctx.kept, ctx.temperature = (numerator_BN, sum_B1), temperature
        return (sum_B1.log() + highest_B1 / temperature).squeeze(1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_B: Tensor) -> tuple[Tensor, None]:
        if ctx.kept is None:
            raise RuntimeError("log_sum_exp supports one backward pass: the first one overwrote the saved tensors")
        (numerator_BN, sum_B1), ctx.kept = ctx.kept, None
        sum_B1 = sum_B1.clamp(min=torch.finfo(sum_B1.dtype).tiny)
        return numerator_BN.mul_(grad_B[:, None] / (sum_B1 * ctx.temperature)), None
