"""Scores of the positives of pairs with the log-sum-exp of their own negatives, on a GPU, in one pass over the rows."""

from typing import Any

import torch
import triton
from torch import Tensor

from distrec.kernels.triton import pair_softmax_programs as programs
from distrec.kernels.triton.launch import OPTIONS, aligned

WIDEST = 256
"""Columns of a row up to which a program holds it."""
_ELEMENTS = 2048  # of the negatives' rows that a program holds at a time


class PairSoftmax(torch.autograd.Function):
    """Return (s_ui, log sum_j e^{s_uj / t}) of each pair, (B,) both; there is at least one negative.

    Args:
        users_UD, items_VD: representations.
        user_index_B, positive_index_B, negative_index_BN: rows of the pairs.
        temperature: t.
    """

    @staticmethod
    def forward(
        ctx: Any,
        users_UD: Tensor,
        items_VD: Tensor,
        user_index_B: Tensor,
        positive_index_B: Tensor,
        negative_index_BN: Tensor,
        temperature: float,
    ) -> tuple[Tensor, Tensor]:
        inputs = [aligned(t) for t in (users_UD, items_VD, user_index_B, positive_index_B, negative_index_BN)]
        (pairs, n), dim = negative_index_BN.shape, users_UD.shape[1]
        scores_BN, means_BD = users_UD.new_empty(pairs, n), users_UD.new_empty(pairs, dim)
        positive_B, highest_B, sum_B = (users_UD.new_empty(pairs) for _ in range(3))
        width = triton.next_power_of_2(dim)
        ctx.sizes = {"D": dim, "PAD": width, "CHUNK": max(1, _ELEMENTS // width), "num_warps": 4}
        ctx.scalars = n, 1 / temperature
        with torch.cuda.device_of(users_UD):  # type: ignore[no-untyped-call]
            programs.forward[(pairs,)](
                *inputs, scores_BN, positive_B, highest_B, sum_B, means_BD, *ctx.scalars, **ctx.sizes, **OPTIONS
            )
        ctx.save_for_backward(*inputs, scores_BN, highest_B, sum_B, means_BD)
        return positive_B, sum_B.log().add_(highest_B, alpha=1 / temperature)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_positive_B: Tensor, grad_log_sum_B: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        grads = torch.zeros_like(saved[0]), torch.zeros_like(saved[1])
        with torch.cuda.device_of(saved[0]):  # type: ignore[no-untyped-call]
            programs.backward[(len(grad_positive_B),)](
                *(*saved, grad_positive_B.contiguous(), grad_log_sum_B.contiguous(), *grads, *ctx.scalars),
                **ctx.sizes,
                **OPTIONS,
            )
        return *grads, None, None, None, None
