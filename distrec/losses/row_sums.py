"""Sums over the negatives of each pair, with their gradients computed in the same pass over the (B, N) scores.

On the CPU the scores are processed in blocks of some pairs (suffix b) that stay in cache, and what the backward pass
needs is written over one buffer: an array of 1,024 x 800 scores passes through memory twice, not ten times.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from distrec.core.buffer_pool import empty
from distrec.kernels.dispatch import has_gpu_kernel

_BLOCK = 2**16  # scores in a block on the CPU: 256 KiB in float32

RowFunction = Callable[[Tensor], Tensor]
"""Returns the sums of f over the rows of its argument, (b,), and overwrites the argument with f'. A masked negative
is -inf, where f and f' must be 0."""


def sum_of_negatives(function: RowFunction, negative_BN: Tensor, shift_B: Tensor | float = 0.0) -> Tensor:
    """Return the sum of f(s_uj - c_u) over the negatives j of each pair, (B,).

    Args:
        function: f, with its sums and its derivative.
        negative_BN: scores s_uj.
        shift_B: c_u, with a gradient if it is a tensor.
    """
    if not isinstance(shift_B, Tensor):
        shift_B = negative_BN.new_full((len(negative_BN),), shift_B)
    sum_B: Tensor = _RowSum.apply(negative_BN, shift_B, function)  # type: ignore[no-untyped-call]
    return sum_B


def mean_of_negatives(
    function: RowFunction, negative_BN: Tensor, unmasked_B: Tensor, shift_B: Tensor | float = 0.0
) -> Tensor:
    """Return `sum_of_negatives` over the number of the pair's negatives that are not masked, (B,); 0 if all are."""
    return sum_of_negatives(function, negative_BN, shift_B) / unmasked_B.clamp(min=1)


def hinge_(x_bN: Tensor) -> Tensor:
    """f(x) = [x]+, with f'(0) = 0."""
    sum_b = x_bN.clamp_(min=0).sum(1)
    x_bN.sign_()
    return sum_b


def softplus_(x_bN: Tensor) -> Tensor:
    """f(x) = log(1 + e^x)."""
    sum_b = softplus(x_bN).sum(1)
    x_bN.sigmoid_()
    return sum_b


def square_(x_bN: Tensor) -> Tensor:
    """f(x) = x^2, and 0 at -inf."""
    x_bN.masked_fill_(x_bN == -torch.inf, 0.0)
    sum_b = x_bN.square().sum(1)
    x_bN.mul_(2)
    return sum_b


def softplus(x: Tensor) -> Tensor:
    """Return log(1 + e^x), elementwise. torch's default switches to x at 20, which is too early for float64."""
    return torch.nn.functional.softplus(x, threshold=40.0)


def _blocks(scores_BN: Tensor) -> list[slice]:
    """Return slices of the pairs: blocks that stay in cache; on a GPU, where each costs launches, one for all."""
    pairs, negatives = scores_BN.shape
    size = max(1, _BLOCK // max(1, negatives)) if scores_BN.device.type == "cpu" else max(1, pairs)
    return [slice(start, start + size) for start in range(0, pairs, size)]


class _RowSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, scores_BN: Tensor, shift_B: Tensor, function: RowFunction) -> Tensor:
        slope_BN, sum_B, slopes_B = (
            empty(scores_BN.shape, scores_BN),
            torch.empty_like(shift_B),
            torch.empty_like(shift_B),
        )
        for block in _blocks(scores_BN):
            x_bN = torch.sub(scores_BN[block], shift_B[block, None], out=slope_BN[block])
            sum_B[block] = function(x_bN)
            if ctx.needs_input_grad[1]:
                slopes_B[block] = x_bN.sum(1)
        # Not `save_for_backward`, which forbids overwriting: the gradients are written over the slopes.
        ctx.kept = slope_BN, slopes_B
        return sum_B

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_B: Tensor) -> tuple[Tensor | None, ...]:
        (slope_BN, slopes_B), ctx.kept = _taken(ctx.kept), None
        return slope_BN.mul_(grad_B[:, None]), -grad_B * slopes_B if ctx.needs_input_grad[1] else None, None


def log_sum_exp(scores_BN: Tensor, temperature: float) -> Tensor:
    """Return log sum_j e^{s_j / t} of each pair, (B,); -inf where all scores are -inf.

    Equals `torch.logsumexp(scores_BN / temperature, 1)`.
    """
    if has_gpu_kernel(scores_BN):
        from distrec.kernels.triton.rows import LogSumExp  # here: Triton may be missing

        return LogSumExp.apply(scores_BN, temperature)  # type: ignore[no-untyped-call,no-any-return]
    return _LogSumExp.apply(scores_BN, temperature)  # type: ignore[no-untyped-call,no-any-return]


class _LogSumExp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, scores_BN: Tensor, temperature: float) -> Tensor:
        numerator_BN, sum_B1 = empty(scores_BN.shape, scores_BN), scores_BN.new_empty(len(scores_BN), 1)
        highest_B1 = torch.empty_like(sum_B1)
        for block in _blocks(scores_BN):
            # Finite, as -inf - (-inf) is NaN.
            highest_b1 = scores_BN[block].amax(1, keepdim=True).clamp_(min=torch.finfo(scores_BN.dtype).min)
            numerator_bN = torch.sub(scores_BN[block], highest_b1, out=numerator_BN[block])
            sum_B1[block] = numerator_bN.mul_(1 / temperature).exp_().sum(1, keepdim=True)
            highest_B1[block] = highest_b1
        # Not `save_for_backward`, which forbids overwriting: the gradients are written over the numerators.
        ctx.kept, ctx.temperature = (numerator_BN, sum_B1), temperature
        return (sum_B1.log() + highest_B1 / temperature).squeeze(1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_B: Tensor) -> tuple[Tensor, None]:
        (numerator_BN, sum_B1), ctx.kept = _taken(ctx.kept), None
        sum_B1 = sum_B1.clamp(min=torch.finfo(sum_B1.dtype).tiny)
        return numerator_BN.mul_(grad_B[:, None] / (sum_B1 * ctx.temperature)), None


def _taken(kept: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor]:
    if kept is None:
        raise RuntimeError("a sum over negatives supports one backward pass: the first one overwrote the saved tensors")
    return kept
