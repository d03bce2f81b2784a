"""Triton programs over whole rows: normalisation to unit length, and the log-sum-exp of the negatives of a pair.

Tensors are pointers to contiguous memory, but for scores, whose rows start `stride` apart. T: rows of a program (TILE);
D; PAD, the next power of 2; BLOCK: scores that a program holds at a time.
"""

import triton
import triton.language as tl

from distrec.kernels.triton.optimizer_programs import _div, _sqrt

_program = triton.jit(do_not_specialize=["rows", "pairs", "n", "stride"])
_LOWEST = tl.constexpr(-3.4e38)  # finite, as -inf - (-inf) is NaN


@triton.jit
def _tile(rows, D: tl.constexpr, PAD: tl.constexpr, TILE: tl.constexpr):
    row_T, d_D = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE), tl.arange(0, PAD)
    here_T = row_T < rows
    return row_T, here_T, row_T[:, None] * D + d_D[None, :], here_T[:, None] & (d_D < D)[None, :]


@_program
def normalize(values, out, norms, rows, eps: tl.float64, D: tl.constexpr, PAD: tl.constexpr, TILE: tl.constexpr):
    """Divide rows by their norms, which are clamped to `eps` from below and kept."""
    row_T, here_T, offset_TD, mask_TD = _tile(rows, D, PAD, TILE)
    x_TD = tl.load(values + offset_TD, mask=mask_TD, other=0.0)
    norm_T = tl.maximum(_sqrt(tl.sum(x_TD * x_TD, 1)), tl.full([], eps, x_TD.dtype))
    tl.store(out + offset_TD, _div(x_TD, tl.broadcast_to(norm_T[:, None], (TILE, PAD))), mask=mask_TD)
    tl.store(norms + row_T, norm_T, mask=here_T)


@_program
def normalize_backward(
    normalized, norms, grads, out, rows, eps: tl.float64, D: tl.constexpr, PAD: tl.constexpr, TILE: tl.constexpr
):
    """Remove the component along the row, which only changes its norm, and divide. A clamped norm is a constant."""
    row_T, here_T, offset_TD, mask_TD = _tile(rows, D, PAD, TILE)
    y_TD = tl.load(normalized + offset_TD, mask=mask_TD, other=0.0)
    g_TD = tl.load(grads + offset_TD, mask=mask_TD, other=0.0)
    norm_T = tl.load(norms + row_T, mask=here_T, other=1.0)
    along_T = tl.where(norm_T <= tl.full([], eps, norm_T.dtype), 0.0, tl.sum(y_TD * g_TD, 1))
    change_TD = g_TD - y_TD * along_T[:, None]
    tl.store(out + offset_TD, _div(change_TD, tl.broadcast_to(norm_T[:, None], (TILE, PAD))), mask=mask_TD)


@_program
def log_sum_exp(scores, highest, sums, n, stride, scale: tl.float64, BLOCK: tl.constexpr):
    """Write the highest score of a pair, and the sum of exp(scale (score - highest))."""
    b = tl.program_id(0).to(tl.int64)
    k_N = tl.arange(0, BLOCK)
    real = scores.dtype.element_ty
    factor = tl.full([], scale, real)
    top_N, sum_N = tl.full([BLOCK], _LOWEST, real), tl.zeros([BLOCK], real)
    for start in range(0, n, BLOCK):
        score_N = tl.load(scores + b * stride + start + k_N, mask=start + k_N < n, other=float("-inf"))
        higher_N = tl.maximum(top_N, score_N)
        sum_N = sum_N * tl.exp(factor * (top_N - higher_N)) + tl.exp(factor * (score_N - higher_N))
        top_N = higher_N
    top = tl.max(top_N, 0)
    tl.store(highest + b, top)
    tl.store(sums + b, tl.sum(sum_N * tl.exp(factor * (top_N - top)), 0))


@_program
def log_sum_exp_backward(scores, highest, sums, grad, out, n, stride, scale: tl.float64, BLOCK: tl.constexpr):
    """Write grad * scale * exp(scale (score - highest)) / sum for BLOCK scores of a pair."""
    b = tl.program_id(0).to(tl.int64)
    k_N = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    factor = tl.full([], scale, scores.dtype.element_ty)
    total = tl.load(sums + b)  # 0 where all negatives are masked
    weight = tl.load(grad + b) * factor / tl.where(total > 0, total, 1.0)
    score_N = tl.load(scores + b * stride + k_N, mask=k_N < n, other=float("-inf"))
    tl.store(out + b * n + k_N, tl.exp(factor * (score_N - tl.load(highest + b))) * weight, mask=k_N < n)
