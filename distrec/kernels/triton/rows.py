"""Functions of whole rows on GPUs, forward and backward one pass each: the counterparts of torch's operations."""

from typing import Any

import torch
import triton
from torch import Tensor

from distrec.kernels.triton import rows_programs as programs
from distrec.kernels.triton.launch import OPTIONS, aligned

_ELEMENTS = 1024  # of rows in a program, if a row is not longer
_BLOCK = 1024  # scores that a program holds at a time


class L2Normalize(torch.autograd.Function):
    """`models.scoring.l2_normalize` for float32 and float64."""

    @staticmethod
    def forward(ctx: Any, rows_UD: Tensor, epsilon: float) -> Tensor:
        rows_UD = aligned(rows_UD)
        normalized_UD, norm_U = torch.empty_like(rows_UD), rows_UD.new_empty(len(rows_UD))
        ctx.save_for_backward(normalized_UD, norm_U)
        ctx.epsilon = epsilon
        _launch(programs.normalize, rows_UD, normalized_UD, norm_U, epsilon=epsilon)
        return normalized_UD

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_UD: Tensor) -> tuple[Tensor, None]:
        normalized_UD, norm_U = ctx.saved_tensors
        out_UD = torch.empty_like(normalized_UD)
        _launch(programs.normalize_backward, normalized_UD, norm_U, aligned(grad_UD), out_UD, epsilon=ctx.epsilon)
        return out_UD, None


class LogSumExp(torch.autograd.Function):
    """`losses.row_sums.log_sum_exp` for float32 and float64 scores, whose columns adjoin."""

    @staticmethod
    def forward(ctx: Any, scores_BN: Tensor, temperature: float) -> Tensor:
        if scores_BN.stride(1) != 1:
            scores_BN = scores_BN.contiguous()
        (pairs, n), sizes = scores_BN.shape, {"BLOCK": min(_BLOCK, triton.next_power_of_2(max(1, scores_BN.shape[1])))}
        highest_B, sum_B = (scores_BN.new_empty(pairs) for _ in range(2))
        if pairs:
            with torch.cuda.device_of(scores_BN):  # type: ignore[no-untyped-call]
                programs.log_sum_exp[(pairs,)](
                    scores_BN, highest_B, sum_B, n, scores_BN.stride(0), 1 / temperature, **sizes, **OPTIONS
                )
        ctx.save_for_backward(scores_BN, highest_B, sum_B)
        ctx.temperature, ctx.sizes = temperature, sizes
        return sum_B.log().add_(highest_B, alpha=1 / temperature)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_B: Tensor) -> tuple[Tensor, None]:
        scores_BN, highest_B, sum_B = ctx.saved_tensors
        (pairs, n), out_BN = scores_BN.shape, torch.empty_like(scores_BN, memory_format=torch.contiguous_format)
        if out_BN.numel():
            arguments = highest_B, sum_B, grad_B.contiguous(), out_BN, n, scores_BN.stride(0), 1 / ctx.temperature
            with torch.cuda.device_of(scores_BN):  # type: ignore[no-untyped-call]
                programs.log_sum_exp_backward[(pairs, triton.cdiv(n, ctx.sizes["BLOCK"]))](
                    scores_BN, *arguments, **ctx.sizes, **OPTIONS
                )
        return out_BN, None


def _launch(program: Any, rows_UD: Tensor, *others: Tensor, epsilon: float) -> None:
    rows, dim = rows_UD.shape
    if not rows_UD.numel():
        return
    width = triton.next_power_of_2(dim)
    tile = max(1, _ELEMENTS // width)
    with torch.cuda.device_of(rows_UD):  # type: ignore[no-untyped-call]
        program[(triton.cdiv(rows, tile),)](
            rows_UD,
            *others,
            rows,
            epsilon,
            D=dim,
            PAD=width,
            TILE=tile,
            num_warps=min(16, max(4, width // 512)),
            **OPTIONS,
        )
