"""Rows of length 1 on the CPU, compiled: one pass over the rows for the value, one for the gradient.

Measured on one core, 41,000 rows of D = 64, float32: 2.0 ms for both, and 19 ms in plain torch, which makes a table of
each intermediate result.
"""

import math

import torch
from numba import prange

from distrec.core.buffer_pool import empty
from distrec.kernels.numba.intrinsics import dot
from distrec.kernels.numba.launch import loop, run


class L2Normalize(torch.autograd.Function):
    """Implements `scores.unit_rows` for float32 and float64 rows."""

    @staticmethod
    def forward(ctx, rows_UD, least):
        rows_UD = rows_UD.detach().contiguous()
        unit_UD, length_U = empty(rows_UD.shape, rows_UD), rows_UD.new_empty(len(rows_UD))
        run(UNIT, rows_UD.numpy(), least, unit_UD.numpy(), length_U.numpy())
        ctx.save_for_backward(unit_UD, length_U)
        ctx.least = least
        return unit_UD

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_UD):
        unit_UD, length_U = ctx.saved_tensors
        grad_UD, out_UD = grad_UD.contiguous(), empty(unit_UD.shape, unit_UD)
        run(GRAD, unit_UD.detach().numpy(), length_U.numpy(), ctx.least, grad_UD.numpy(), out_UD.numpy())
        return out_UD, None


def _unit(rows_UD, least, unit_UD, length_U):
    real = rows_UD.dtype.type
    for u in prange(len(rows_UD)):
        length = max(math.sqrt(dot(rows_UD, u, rows_UD, u)), real(least))
        length_U[u] = length
        row_D, unit_D = rows_UD[u], unit_UD[u]
        for d in range(len(row_D)):
            unit_D[d] = row_D[d] / length


def _grad(unit_UD, length_U, least, grad_UD, out_UD):
    real = unit_UD.dtype.type
    for u in prange(len(unit_UD)):
        # What lies along the row would only change its length. A row that is too short is divided by a constant.
        length, unit_D, grad_D, out_D = length_U[u], unit_UD[u], grad_UD[u], out_UD[u]
        along = dot(unit_UD, u, grad_UD, u) if length > real(least) else real(0)
        for d in range(len(out_D)):
            out_D[d] = (grad_D[d] - along * unit_D[d]) / length


UNIT, GRAD = loop(_unit), loop(_grad)
