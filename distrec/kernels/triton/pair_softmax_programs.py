"""Triton programs for GPUs: scores of pairs with the log-sum-exp of their negatives, and their gradients.

One program a pair. It gathers the rows of the pair's negatives once, in the forward pass, which keeps the scores and
the mean of these rows weighted by the softmax: the backward pass then adds to the rows of the items by atomics, without
reading them. Tensors are pointers to contiguous memory. CHUNK: negatives that a program holds at a time; D; PAD, the
next power of 2.
"""

import triton
import triton.language as tl

_program = triton.jit(do_not_specialize=["n"])
_LOWEST = tl.constexpr(-3.4e38)


@_program
def forward(
    users,
    items,
    user_index,
    positive_index,
    negative_index,
    scores,
    positive,
    highest,
    sums,
    means,
    n,
    scale: tl.float64,
    D: tl.constexpr,
    PAD: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Write the score of the positive, those of the negatives, their highest, the sum of exp(scale (score - highest)),
    and the mean of the rows weighted by these."""
    b = tl.program_id(0).to(tl.int64)
    d_D, k_N = tl.arange(0, PAD), tl.arange(0, CHUNK)
    real = users.dtype.element_ty
    factor = tl.full([], scale, real)
    user = tl.load(user_index + b).to(tl.int64)
    user_D = tl.load(users + user * D + d_D, mask=d_D < D, other=0.0)
    top_N, sum_N = tl.full([CHUNK], _LOWEST, real), tl.zeros([CHUNK], real)
    sum_ND = tl.zeros([CHUNK, PAD], real)
    for start in range(0, n, CHUNK):
        here_N = start + k_N < n
        item_N = tl.load(negative_index + b * n + start + k_N, mask=here_N, other=0).to(tl.int64)
        mask_ND = here_N[:, None] & (d_D < D)[None, :]
        row_ND = tl.load(items + item_N[:, None] * D + d_D[None, :], mask=mask_ND, other=0.0)
        score_N = tl.sum(row_ND * user_D[None, :], 1)
        tl.store(scores + b * n + start + k_N, score_N, mask=here_N)
        score_N = tl.where(here_N, score_N, float("-inf"))
        higher_N = tl.maximum(top_N, score_N)
        keep_N, new_N = tl.exp(factor * (top_N - higher_N)), tl.exp(factor * (score_N - higher_N))
        sum_ND = sum_ND * keep_N[:, None] + row_ND * new_N[:, None]
        sum_N = sum_N * keep_N + new_N
        top_N = higher_N
    top = tl.max(top_N, 0)
    keep_N = tl.exp(factor * (top_N - top))
    total = tl.sum(sum_N * keep_N, 0)
    tl.store(means + b * D + d_D, tl.sum(sum_ND * keep_N[:, None], 0) / total, mask=d_D < D)
    tl.store(highest + b, top)
    tl.store(sums + b, total)
    item = tl.load(positive_index + b).to(tl.int64)
    item_D = tl.load(items + item * D + d_D, mask=d_D < D, other=0.0)
    tl.store(positive + b, tl.sum(user_D * item_D, 0))


@_program
def backward(
    users,
    items,
    user_index,
    positive_index,
    negative_index,
    scores,
    highest,
    sums,
    means,
    grad_positive,
    grad_log_sum,
    user_grads,
    item_grads,
    n,
    scale: tl.float64,
    D: tl.constexpr,
    PAD: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Add the gradients of one pair to those of its rows, in any order; all start at 0."""
    b = tl.program_id(0).to(tl.int64)
    d_D, k_N = tl.arange(0, PAD), tl.arange(0, CHUNK)
    within_D = d_D < D
    factor = tl.full([], scale, users.dtype.element_ty)
    user, item = tl.load(user_index + b).to(tl.int64), tl.load(positive_index + b).to(tl.int64)
    user_D = tl.load(users + user * D + d_D, mask=within_D, other=0.0)
    item_D = tl.load(items + item * D + d_D, mask=within_D, other=0.0)
    mean_D = tl.load(means + b * D + d_D, mask=within_D, other=0.0)
    of_positive, of_sum = tl.load(grad_positive + b), tl.load(grad_log_sum + b) * factor
    tl.atomic_add(user_grads + user * D + d_D, of_positive * item_D + of_sum * mean_D, mask=within_D, sem="relaxed")
    tl.atomic_add(item_grads + item * D + d_D, of_positive * user_D, mask=within_D, sem="relaxed")
    top, share = tl.load(highest + b), of_sum / tl.load(sums + b)
    for start in range(0, n, CHUNK):
        here_N = start + k_N < n
        score_N = tl.load(scores + b * n + start + k_N, mask=here_N, other=float("-inf"))
        weight_N = tl.exp(factor * (score_N - top)) * share
        here_N = here_N & (weight_N != 0)
        item_N = tl.load(negative_index + b * n + start + k_N, mask=here_N, other=0).to(tl.int64)
        mask_ND = here_N[:, None] & within_D[None, :]
        offset_ND = item_N[:, None] * D + d_D[None, :]
        tl.atomic_add(item_grads + offset_ND, weight_N[:, None] * user_D[None, :], mask=mask_ND, sem="relaxed")
