"""Train on the device: whole steps of sampled softmax (cosine), BPR (dot product), shared negatives and exact softmax.

Everything that a step needs is on the device: resident interactions and their order, a step counter, tables, and the
coefficients of the optimizer for all steps, filled ahead. Nothing waits for the host, so a step can be captured as one
CUDA graph. Users' and items' rows lie in one table: item i is row `users` + i.

Lazy Adam: rows that a step touches take Adam's step; bias corrections count all steps. Decoupled decay of all rows: the
stored rows are w / scale, and the scale shrinks by 1 - lr * decay a step.

Shape suffixes: B pairs, N negatives, D dimension, V rows of the stacked table, E interactions, R rows of a program.
"""
# ruff: noqa: ANN001, ANN201  (Triton infers the types of what it compiles)

from dataclasses import dataclass

import numpy as np
import torch
import triton
import triton.language as tl

from . import draws
from .draws import COUNT, EPOCH, FIRST, STATE, STEP, TIME, TOUCHED, SamplerTables, draw_pair

_STEP, _EPOCH, _TIME = tl.constexpr(STEP), tl.constexpr(EPOCH), tl.constexpr(TIME)
_TOUCHED, _FIRST, _COUNT = tl.constexpr(TOUCHED), tl.constexpr(FIRST), tl.constexpr(COUNT)
BETA1, BETA2, EPS = 0.9, 0.999, 1e-8
COEFFICIENTS = 4  # of a step: size, epsilon (both with bias corrections), scale before the step, 1 / scale after it
NORM_EPS = 1e-12


@triton.jit(do_not_specialize=["pairs"])
def gather_pairs(
    order_E,
    number_E,
    user_E,
    item_E,
    start_S,
    state,
    user_B,
    item_B,
    pair_number_B,
    mark_V,
    pairs,
    users,
    BLOCK: tl.constexpr,
):
    """Gather the positives of the step that the counter names, mark their rows, and reset the count of touched rows."""
    step = tl.load(state + _STEP)
    first, last = tl.load(start_S + step), tl.load(start_S + step + 1)
    b_B = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    count = tl.minimum(last - first, pairs)
    here_B = b_B < count
    at_B = tl.load(order_E + first + b_B, mask=here_B, other=0)
    number_B = tl.load(number_E + first + b_B, mask=here_B, other=0)
    u_B, i_B = tl.load(user_E + at_B, mask=here_B, other=0), tl.load(item_E + at_B, mask=here_B, other=0)
    inside_B = b_B < pairs
    tl.store(user_B + b_B, u_B, mask=inside_B)  # pairs past the count: user 0 and item 0
    tl.store(item_B + b_B, i_B, mask=inside_B)
    tl.store(pair_number_B + b_B, number_B, mask=inside_B)
    stamp_B = (u_B ^ u_B) + (tl.load(state + _TIME) + 1).to(tl.int32)
    tl.store(mark_V + u_B, stamp_B, mask=here_B)
    tl.store(mark_V + users + i_B, stamp_B, mask=here_B)
    if tl.program_id(0) == 0:
        tl.store(state + _FIRST, first)
        tl.store(state + _COUNT, count)
        tl.store(state + _TOUCHED, first ^ first)


@triton.jit(do_not_specialize=["steps"])
def advance(state, steps):
    """Move the counters to the next step."""
    step = tl.load(state + _STEP) + 1
    over = step >= steps
    tl.store(state + _TIME, tl.load(state + _TIME) + 1)
    tl.store(state + _EPOCH, tl.load(state + _EPOCH) + over.to(tl.int64))
    tl.store(state + _STEP, tl.where(over, step ^ step, step))


@triton.jit(do_not_specialize=["rows"])
def normalize_rows(x_VD, y_VD, inverse_V, rows, D: tl.constexpr, R: tl.constexpr):
    """Write the l2-normalised rows and the inverse norms of the stored ones."""
    r_R, d_D = tl.program_id(0).to(tl.int64) * R + tl.arange(0, R), tl.arange(0, D)
    here_R = r_R < rows
    at_RD = r_R[:, None] * D + d_D[None, :]
    x_RD = tl.load(x_VD + at_RD, mask=here_R[:, None], other=0.0)
    inverse_R = 1.0 / tl.maximum(tl.sqrt(tl.sum(x_RD * x_RD, 1)), 1e-12)
    tl.store(y_VD + at_RD, x_RD * inverse_R[:, None], mask=here_R[:, None])
    tl.store(inverse_V + r_R, inverse_R, mask=here_R)


@triton.jit(do_not_specialize=["n"])
def sampled_softmax(
    user_B,
    item_B,
    number_B,
    state,
    y_VD,
    grad_VD,
    mark_V,
    item_BN,
    score_BN,
    loss_B,
    n,
    users,
    inverse_temperature,
    constants,
    offsets,
    free_U,
    cut_P,
    removed,
    edges,
    guide,
    EVEN: tl.constexpr,
    HALVES: tl.constexpr,
    EXCLUDE: tl.constexpr,
    DRAW: tl.constexpr,
    SCATTER: tl.constexpr,
    D: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Add the gradients of -log softmax of a pair's positive among its n negatives, in the normalised rows.

    DRAW: draw the negatives first, into item_BN (scratch), else they are there. The first pass gathers rows, keeps
    scores in score_BN and sums e^score * row, with a running maximum for each of CHUNK lanes; the second adds to the
    rows of the items by atomics (left out without SCATTER, for measurements).
    """
    b = tl.program_id(0)
    pairs = tl.load(state + _COUNT)
    if b >= pairs:
        return
    user, positive = tl.load(user_B + b), tl.load(item_B + b)
    if DRAW:
        draw_pair(
            b,
            user,
            tl.load(number_B + b),
            item_BN,
            mark_V + users,
            (tl.load(state + _TIME) + 1).to(tl.int32),
            n,
            tl.load(state + _EPOCH).to(tl.uint64),
            constants,
            offsets,
            free_U,
            cut_P,
            removed,
            edges,
            guide,
            EVEN,
            HALVES,
            EXCLUDE,
            True,
            BLOCK,
        )
        tl.debug_barrier()  # other threads of the program read the items
    d_D, lane_N = tl.arange(0, D), tl.arange(0, CHUNK)
    item_rows, item_grads = y_VD + users.to(tl.int64) * D, grad_VD + users.to(tl.int64) * D
    user_at_D, positive_at_D = user.to(tl.int64) * D + d_D, positive.to(tl.int64) * D + d_D
    user_D, positive_D = tl.load(y_VD + user_at_D), tl.load(item_rows + positive_at_D)
    items, scores = item_BN + b.to(tl.int64) * n, score_BN + b.to(tl.int64) * n
    top_N, sum_N = tl.full([CHUNK], -1e30, tl.float32), tl.zeros([CHUNK], tl.float32)
    sum_ND = tl.zeros([CHUNK, D], tl.float32)
    for at in range(0, n, CHUNK):
        k_N = at + lane_N
        here_N = k_N < n
        row_N = tl.load(items + k_N, mask=here_N, other=0).to(tl.int64) * D
        row_ND = tl.load(item_rows + row_N[:, None] + d_D[None, :])
        score_N = tl.sum(row_ND * user_D[None, :], 1) * inverse_temperature
        tl.store(scores + k_N, score_N, mask=here_N)
        score_N = tl.where(here_N, score_N, float("-inf"))
        higher_N = tl.maximum(top_N, score_N)
        keep_N, new_N = tl.exp(top_N - higher_N), tl.exp(score_N - higher_N)
        sum_ND = sum_ND * keep_N[:, None] + row_ND * new_N[:, None]
        sum_N = sum_N * keep_N + new_N
        top_N = higher_N
    score = tl.sum(user_D * positive_D, 0) * inverse_temperature
    top = tl.maximum(tl.max(top_N, 0), score)
    keep_N = tl.exp(top_N - top)
    numerator = tl.exp(score - top)
    denominator = tl.sum(sum_N * keep_N, 0) + numerator
    share = numerator / denominator - 1.0
    tl.store(loss_B + b, top + tl.log(denominator) - score)
    factor = inverse_temperature / pairs.to(tl.float32)
    user_grad_D = tl.sum(sum_ND * keep_N[:, None], 0) / denominator + share * positive_D
    tl.atomic_add(grad_VD + user_at_D, user_grad_D * factor, sem="relaxed")
    tl.atomic_add(item_grads + positive_at_D, user_D * (share * factor), sem="relaxed")
    if SCATTER:
        tl.debug_barrier()  # other threads of the program read the scores
        for at in range(0, n, CHUNK):
            k_N = at + lane_N
            here_N = k_N < n
            row_N = tl.load(items + k_N, mask=here_N, other=0).to(tl.int64) * D
            score_N = tl.load(scores + k_N, mask=here_N, other=float("-inf"))
            weight_N = tl.exp(score_N - top) * (factor / denominator)
            to_ND = item_grads + row_N[:, None] + d_D[None, :]
            mask_ND = here_N[:, None] & (d_D >= 0)[None, :]
            tl.atomic_add(to_ND, weight_N[:, None] * user_D[None, :], mask=mask_ND, sem="relaxed")


@triton.jit(do_not_specialize=["limit"])
def bpr(
    user_B,
    item_B,
    number_B,
    state,
    x_VD,
    grad_VD,
    mark_V,
    negative_B,
    loss_B,
    coefficients_SC,
    limit,
    users,
    constants,
    offsets,
    free_U,
    cut_P,
    removed,
    edges,
    guide,
    EVEN: tl.constexpr,
    HALVES: tl.constexpr,
    EXCLUDE: tl.constexpr,
    DRAW: tl.constexpr,
    D: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Add the gradients of softplus(negative - positive), dot products, one negative a pair, BLOCK pairs a program."""
    b_B, d_D = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK), tl.arange(0, D)
    pairs, time = tl.load(state + _COUNT), tl.load(state + _TIME)
    here_B = b_B < tl.minimum(pairs, limit)
    u_B, p_B = tl.load(user_B + b_B, mask=here_B, other=0), tl.load(item_B + b_B, mask=here_B, other=0)
    if DRAW:
        n_B = draws.draw_one_each(
            u_B,
            tl.load(number_B + b_B, mask=here_B, other=0),
            here_B,
            tl.load(state + _EPOCH).to(tl.uint64),
            constants,
            offsets,
            free_U,
            cut_P,
            removed,
            edges,
            guide,
            EVEN,
            HALVES,
            EXCLUDE,
        )
        tl.store(negative_B + b_B, n_B, mask=here_B)
        tl.store(mark_V + users + n_B, (n_B ^ n_B) + (time + 1).to(tl.int32), mask=here_B)
    else:
        n_B = tl.load(negative_B + b_B, mask=here_B, other=0)
    mask_BD = here_B[:, None] & (d_D >= 0)[None, :]
    user_at_BD = u_B.to(tl.int64)[:, None] * D + d_D[None, :]
    positive_at_BD = (p_B + users).to(tl.int64)[:, None] * D + d_D[None, :]
    negative_at_BD = (n_B + users).to(tl.int64)[:, None] * D + d_D[None, :]
    user_BD = tl.load(x_VD + user_at_BD, mask=mask_BD, other=0.0)
    difference_BD = tl.load(x_VD + positive_at_BD, mask=mask_BD, other=0.0)
    difference_BD -= tl.load(x_VD + negative_at_BD, mask=mask_BD, other=0.0)
    scale = tl.load(coefficients_SC + time * 4 + 2)
    margin_B = tl.sum(user_BD * difference_BD, 1) * scale * scale
    small_B = tl.exp(-tl.abs(margin_B))
    tl.store(loss_B + b_B, tl.maximum(-margin_B, 0.0) + tl.log(1.0 + small_B), mask=here_B)
    slope_B = tl.where(margin_B >= 0, small_B, 1.0) / (1.0 + small_B) * (scale / pairs.to(tl.float32))
    step_BD = user_BD * slope_B[:, None]
    tl.atomic_add(grad_VD + user_at_BD, difference_BD * -slope_B[:, None], mask=mask_BD, sem="relaxed")
    tl.atomic_add(grad_VD + positive_at_BD, -step_BD, mask=mask_BD, sem="relaxed")
    tl.atomic_add(grad_VD + negative_at_BD, step_BD, mask=mask_BD, sem="relaxed")


@triton.jit(do_not_specialize=["rows"])
def compact_rows(mark_V, state, list_V, rows, BLOCK: tl.constexpr):
    """List the rows that this step marked; blocks come in any order."""
    r_R = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    stamp = (tl.load(state + _TIME) + 1).to(tl.int32)
    touched_R = tl.load(mark_V + r_R, mask=r_R < rows, other=0) == stamp
    one_R = touched_R.to(tl.int32)
    index_R = tl.cumsum(one_R, 0) - one_R
    base = tl.atomic_add(state + _TOUCHED, tl.sum(one_R, 0).to(tl.int64), sem="relaxed")
    tl.store(list_V + base + index_R, r_R, mask=touched_R)


@triton.jit(do_not_specialize=["rows"])
def adam_rows(
    x_VD,
    y_VD,
    inverse_V,
    grad_VD,
    moment1_VD,
    moment2_VD,
    mark_V,
    list_V,
    state,
    coefficients_SC,
    rows,
    rest1,
    beta2,
    rest2,
    COSINE: tl.constexpr,
    KEEP_NORM: tl.constexpr,
    LISTED: tl.constexpr,
    D: tl.constexpr,
    R: tl.constexpr,
):
    """Take Adam's step on the touched rows, after the backward of the normalisation for COSINE; reset gradients.

    KEEP_NORM: also write the new normalised rows and inverse norms, so that no other program need normalise.
    LISTED: rows are those of `compact_rows`, else the touched ones of all rows.
    """
    place_R, d_D = tl.program_id(0).to(tl.int64) * R + tl.arange(0, R), tl.arange(0, D)
    time = tl.load(state + _TIME)
    if LISTED:
        count = tl.load(state + _TOUCHED)
        if tl.program_id(0).to(tl.int64) * R >= count:
            return
        here_R = place_R < count
        r_R = tl.load(list_V + place_R, mask=here_R, other=0).to(tl.int64)
    else:
        r_R = place_R
        here_R = tl.load(mark_V + r_R, mask=r_R < rows, other=0) == (time + 1).to(tl.int32)
    mask_RD = here_R[:, None] & (d_D >= 0)[None, :]
    at_RD = r_R[:, None] * D + d_D[None, :]
    size, eps = tl.load(coefficients_SC + time * 4), tl.load(coefficients_SC + time * 4 + 1)
    scale, inverse_scale = tl.load(coefficients_SC + time * 4 + 2), tl.load(coefficients_SC + time * 4 + 3)
    g_RD = tl.load(grad_VD + at_RD, mask=mask_RD, other=0.0)
    tl.store(grad_VD + at_RD, tl.zeros([R, D], tl.float32), mask=mask_RD)
    if COSINE:
        y_RD = tl.load(y_VD + at_RD, mask=mask_RD, other=0.0)
        inverse_R = tl.load(inverse_V + r_R, mask=here_R, other=0.0)
        g_RD = (g_RD - y_RD * tl.sum(y_RD * g_RD, 1)[:, None]) * (inverse_R / scale)[:, None]
    m_RD = tl.load(moment1_VD + at_RD, mask=mask_RD, other=0.0)
    v_RD = tl.load(moment2_VD + at_RD, mask=mask_RD, other=0.0)
    x_RD = tl.load(x_VD + at_RD, mask=mask_RD, other=0.0)
    m_RD += rest1 * (g_RD - m_RD)
    v_RD = beta2 * v_RD + rest2 * (g_RD * g_RD)
    x_RD -= size * m_RD / (tl.sqrt(v_RD) + eps) * inverse_scale
    tl.store(moment1_VD + at_RD, m_RD, mask=mask_RD)
    tl.store(moment2_VD + at_RD, v_RD, mask=mask_RD)
    tl.store(x_VD + at_RD, x_RD, mask=mask_RD)
    if KEEP_NORM:
        inverse_R = 1.0 / tl.maximum(tl.sqrt(tl.sum(x_RD * x_RD, 1)), 1e-12)
        tl.debug_barrier()  # threads that share a row have read its old inverse norm
        tl.store(y_VD + at_RD, x_RD * inverse_R[:, None], mask=mask_RD)
        tl.store(inverse_V + r_R, inverse_R, mask=here_R)


@triton.jit
def is_positive(user, item_N, offsets, known_P):
    """Tell which items are among a user's ascending positives, by bisection."""
    start = tl.load(offsets + user)
    length = tl.load(offsets + user + 1) - start
    steps = draws.search_steps_of(length)
    before_N = (item_N ^ item_N).to(tl.int32)
    left = length
    for _ in range(steps):
        half = left >> 1
        key_N = tl.load(known_P + start + before_N + half - 1, mask=half > 0, other=0)
        before_N += tl.where((half > 0) & (key_N < item_N), half, 0).to(tl.int32)
        left -= half
    some = length > 0
    key_N = tl.load(known_P + start + before_N, mask=some, other=-1)
    before_N += (some & (key_N < item_N)).to(tl.int32)
    return tl.load(known_P + start + before_N, mask=before_N < length, other=-1) == item_N


@triton.jit(do_not_specialize=["n"])
def shared_softmax(
    user_B,
    item_B,
    state,
    y_VD,
    rows_BD,
    score_BN,
    item_N,
    value_XD,
    row_X,
    loss_B,
    n,
    users,
    inverse_temperature,
    limit,
    offsets,
    known_P,
    EXCLUDE: tl.constexpr,
    D: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """Replace dot products with shared negatives by their gradients; one program a pair, all negatives at once.

    Writes for the pair: row numbers of user and positive to row_X (-1 past the count), and the positive's parts of
    their gradients to value_XD. EXCLUDE: negatives that are positives of the user have no part in the softmax.
    """
    b = tl.program_id(0)
    d_D, k_N = tl.arange(0, D), tl.arange(0, WIDTH)
    pairs = tl.load(state + _COUNT)
    here = b < pairs
    here_N = k_N < n
    user, positive = tl.load(user_B + b), tl.load(item_B + b)
    scores = score_BN + b.to(tl.int64) * n
    score_N = tl.load(scores + k_N, mask=here_N, other=float("-inf")) * inverse_temperature
    if EXCLUDE:
        drawn_N = tl.load(item_N + k_N, mask=here_N, other=0)
        score_N = tl.where(is_positive(user, drawn_N, offsets, known_P), float("-inf"), score_N)
    user_D = tl.load(rows_BD + b.to(tl.int64) * D + d_D)
    positive_D = tl.load(y_VD + (positive + users).to(tl.int64) * D + d_D)
    score = tl.sum(user_D * positive_D, 0) * inverse_temperature
    top = tl.maximum(tl.max(score_N, 0), score)
    numerator_N, numerator = tl.exp(score_N - top), tl.exp(score - top)
    denominator = tl.sum(numerator_N, 0) + numerator
    factor = tl.where(here, inverse_temperature / pairs.to(tl.float32), 0.0)
    share = (numerator / denominator - 1.0) * factor
    tl.store(scores + k_N, numerator_N * (factor / denominator), mask=here_N)
    tl.store(loss_B + b, tl.where(here, top + tl.log(denominator) - score, 0.0))
    tl.store(row_X + b, tl.where(here, user, -1))
    tl.store(row_X + limit + b, tl.where(here, positive + users, -1))
    tl.store(value_XD + b.to(tl.int64) * D + d_D, share * positive_D)
    tl.store(value_XD + (limit + b).to(tl.int64) * D + d_D, share * user_D)


@triton.jit(do_not_specialize=["count"])
def scatter_rows(value_XD, row_X, grad_VD, count, D: tl.constexpr, R: tl.constexpr):
    """Add rows to the gradients of others by atomics; row -1 is none."""
    x_R, d_D = tl.program_id(0) * R + tl.arange(0, R), tl.arange(0, D)
    row_R = tl.load(row_X + x_R, mask=x_R < count, other=-1).to(tl.int64)
    mask_RD = (row_R >= 0)[:, None] & (d_D >= 0)[None, :]
    value_RD = tl.load(value_XD + x_R.to(tl.int64)[:, None] * D + d_D[None, :], mask=mask_RD, other=0.0)
    tl.atomic_add(grad_VD + row_R[:, None] * D + d_D[None, :], value_RD, mask=mask_RD, sem="relaxed")


@triton.jit(do_not_specialize=["items"])
def exact_softmax(
    user_B,
    item_B,
    state,
    score_BV,
    row_B,
    loss_B,
    items,
    inverse_temperature,
    BOUNDED: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Replace dot products with all items by the gradients of -log softmax of the positive; one program a pair.

    BOUNDED: dot products are at most 1 (cosines), so 1 / temperature bounds the scores and no maximum is looked for.
    """
    b = tl.program_id(0)
    pairs = tl.load(state + _COUNT)
    here = b < pairs
    scores = score_BV + b.to(tl.int64) * items
    k_N = tl.arange(0, CHUNK)
    sum_N = tl.zeros([CHUNK], tl.float32)
    if BOUNDED:
        top = inverse_temperature
        for at in range(0, items, CHUNK):
            score_N = tl.load(scores + at + k_N, mask=at + k_N < items, other=float("-inf")) * inverse_temperature
            sum_N += tl.exp(score_N - top)
        denominator = tl.sum(sum_N, 0)
    else:
        top_N = tl.full([CHUNK], -1e30, tl.float32)
        for at in range(0, items, CHUNK):
            score_N = tl.load(scores + at + k_N, mask=at + k_N < items, other=float("-inf")) * inverse_temperature
            higher_N = tl.maximum(top_N, score_N)
            sum_N = sum_N * tl.exp(top_N - higher_N) + tl.exp(score_N - higher_N)
            top_N = higher_N
        top = tl.max(top_N, 0)
        denominator = tl.sum(sum_N * tl.exp(top_N - top), 0)
    positive = tl.load(item_B + b)
    score = tl.load(scores + positive) * inverse_temperature
    factor = tl.where(here, inverse_temperature / pairs.to(tl.float32), 0.0)
    tl.store(loss_B + b, tl.where(here, top + tl.log(denominator) - score, 0.0))
    tl.store(row_B + b, tl.where(here, tl.load(user_B + b), -1))
    tl.debug_barrier()  # all threads have read the positive's score
    for at in range(0, items, CHUNK):
        mask_N = at + k_N < items
        score_N = tl.load(scores + at + k_N, mask=mask_N, other=float("-inf")) * inverse_temperature
        weight_N = tl.exp(score_N - top) / denominator - tl.where(at + k_N == positive, 1.0, 0.0)
        tl.store(scores + at + k_N, weight_N * factor, mask=mask_N)


@triton.jit(do_not_specialize=["rows"])
def mark_range(mark_V, state, first, rows, BLOCK: tl.constexpr):
    """Mark all rows from `first` on as touched."""
    r_R = first + tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    stamp = (tl.load(state + _TIME) + 1).to(tl.int32)
    tl.store(mark_V + r_R, (r_R ^ r_R).to(tl.int32) + stamp, mask=r_R < rows)


@dataclass
class Interactions:
    """The resident interactions and the order of an epoch, on the device.

    Step s takes the places start_S[s] .. start_S[s + 1] of `order_E`; number_E holds the numbers that key negatives.
    """

    users: int
    items: int
    user_E: torch.Tensor
    item_E: torch.Tensor
    order_E: torch.Tensor
    number_E: torch.Tensor
    start_S: torch.Tensor

    @staticmethod
    def of(users: int, items: int, user_E: np.ndarray, item_E: np.ndarray, pairs: int, seed: int, device: str):
        """Copy interactions to the device, with a given permutation as their order; steps of `pairs`, the last less."""
        count = len(user_E)
        order_E = np.random.default_rng(seed).permutation(count).astype(np.int32)
        start_S = np.append(np.arange(0, count, pairs), count).astype(np.int64)
        arrays = (user_E.astype(np.int32), item_E.astype(np.int32), order_E, np.arange(count, dtype=np.int32), start_S)
        return Interactions(users, items, *(torch.from_numpy(a).to(device) for a in arrays))

    @property
    def steps(self) -> int:
        """Return the steps of an epoch."""
        return len(self.start_S) - 1


class Tables:
    """Stored rows, normalised rows, gradients, moments and marks of the stacked table."""

    def __init__(self, x_VD: torch.Tensor) -> None:
        self.x_VD = x_VD.clone()
        self.y_VD, self.inverse_V = torch.zeros_like(x_VD), torch.zeros_like(x_VD[:, 0])
        self.grad_VD, self.moment1_VD, self.moment2_VD = (torch.zeros_like(x_VD) for _ in range(3))
        self.mark_V = torch.zeros(len(x_VD), dtype=torch.int32, device=x_VD.device)
        self.list_V = torch.zeros_like(self.mark_V)


def coefficients(lr: float, decay: float, steps: int) -> np.ndarray:
    """Compute the coefficients of steps 0 .. `steps` - 1, (S, C) float64."""
    t = np.arange(1, steps + 1)
    correction = np.sqrt(1 - BETA2**t)
    scale = (1 - lr * decay) ** np.arange(steps + 1)
    return np.stack([lr * correction / (1 - BETA1**t), EPS * correction, scale[:-1], 1 / scale[1:]], 1)


class Step:
    """One training step as launches of programs, part by part; subclasses say how scores and gradients are made.

    keep_norm: the optimizer writes normalised rows, else `normalize` does before the scores. listed: the optimizer
    takes a list of touched rows, else it sweeps over all rows.
    """

    cosine = True

    def __init__(
        self,
        data: Interactions,
        tables: Tables,
        sampler: SamplerTables,
        pairs: int,
        coefficients_SC: torch.Tensor,
        temperature: float = 0.1,
        keep_norm: bool = True,
        listed: bool = False,
    ) -> None:
        self.data, self.tables, self.sampler, self.pairs = data, tables, sampler, pairs
        self.coefficients_SC = coefficients_SC
        self.inverse_temperature = 1.0 / temperature
        self.keep_norm, self.listed = keep_norm and self.cosine, listed
        device = tables.x_VD.device
        self.rows, self.dim = tables.x_VD.shape
        self.state = torch.zeros(STATE, dtype=torch.int64, device=device)
        self.user_B, self.item_B, self.number_B = (
            torch.zeros(pairs, dtype=torch.int32, device=device) for _ in range(3)
        )
        self.loss_B = torch.zeros(pairs, device=device)
        self.touched_at_most = self.rows
        if self.cosine:
            self.normalize()

    def gather(self) -> None:
        """Gather the step's positives."""
        d, block = self.data, 256
        gather_pairs[(triton.cdiv(self.pairs, block),)](
            *(d.order_E, d.number_E, d.user_E, d.item_E, d.start_S, self.state),
            *(self.user_B, self.item_B, self.number_B, self.tables.mark_V, self.pairs, d.users),
            BLOCK=block,
        )

    def normalize(self) -> None:
        """Normalise all rows."""
        t = self.tables
        normalize_rows[(triton.cdiv(self.rows, 32),)](t.x_VD, t.y_VD, t.inverse_V, self.rows, D=self.dim, R=32)

    def draw(self) -> None:
        """Draw negatives, where that is a program of its own."""

    def scores(self) -> None:
        """Compute scores, losses and gradients."""
        raise NotImplementedError

    def compact(self) -> None:
        """List the touched rows."""
        t = self.tables
        compact_rows[(triton.cdiv(self.rows, 1024),)](t.mark_V, self.state, t.list_V, self.rows, BLOCK=1024)

    def optimize(self) -> None:
        """Take the optimizer's step."""
        t, r = self.tables, 16
        rows = min(self.rows, self.touched_at_most) if self.listed else self.rows
        adam_rows[(triton.cdiv(rows, r),)](
            *(t.x_VD, t.y_VD, t.inverse_V, t.grad_VD, t.moment1_VD, t.moment2_VD, t.mark_V, t.list_V),
            *(self.state, self.coefficients_SC, self.rows, 1 - BETA1, BETA2, 1 - BETA2),
            COSINE=self.cosine,
            KEEP_NORM=self.keep_norm,
            LISTED=self.listed,
            D=self.dim,
            R=r,
        )

    def advance(self) -> None:
        """Count the step."""
        advance[(1,)](self.state, self.data.steps)

    def __call__(self) -> None:
        """Take one step."""
        self.gather()
        if self.cosine and not self.keep_norm:
            self.normalize()
        self.draw()
        self.scores()
        if self.listed:
            self.compact()
        self.optimize()
        self.advance()


class SampledSoftmax(Step):
    """Each pair's own negatives, cosine. fused: drawn by the program that scores, else by one of its own."""

    def __init__(self, *args, negatives: int, fused: bool, chunk: int = 32, warps: int = 4, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.negatives, self.fused, self.chunk, self.warps = negatives, fused, chunk, warps
        self.scatter = True  # whether items get their gradients; False only to measure the parts
        self.item_BN = torch.zeros(self.pairs, negatives, dtype=torch.int32, device=self.loss_B.device)
        self.score_BN = torch.zeros_like(self.item_BN, dtype=torch.float32)
        self.touched_at_most = self.pairs * (negatives + 2)
        self.block, self.draw_warps = draw_shape(negatives, self.sampler.halves)

    def draw(self) -> None:
        """Draw, unless the scores' program does."""
        if not self.fused:
            self.draw_separately()

    def draw_separately(self) -> None:
        """Draw by a program of its own."""
        draws.draw_pairs[(self.pairs,)](
            *(self.user_B, self.number_B, self.item_BN, self.tables.mark_V[self.data.users :], self.state),
            *(self.negatives, *self.sampler.arguments),
            **self.sampler.options,
            MARK=True,
            BLOCK=self.block,
            num_warps=self.draw_warps,
        )

    def scores(self) -> None:
        """Run the program of scores and gradients."""
        t = self.tables
        sampled_softmax[(self.pairs,)](
            *(self.user_B, self.item_B, self.number_B, self.state, t.y_VD, t.grad_VD, t.mark_V),
            *(self.item_BN, self.score_BN, self.loss_B, self.negatives, self.data.users, self.inverse_temperature),
            *self.sampler.arguments,
            **self.sampler.options,
            DRAW=self.fused,
            SCATTER=self.scatter,
            D=self.dim,
            CHUNK=self.chunk,
            BLOCK=self.block,
            num_warps=self.warps,
        )


def draw_shape(negatives: int, halves: bool) -> tuple[int, int]:
    """Choose (draws of a block, warps) for a program that draws one pair's negatives: one Philox block a thread."""
    per_thread = 8 if halves else 4
    block = min(128 * per_thread, max(32, triton.next_power_of_2(negatives)))
    return block, max(1, min(4, block // per_thread // 32))


class BPR(Step):
    """One negative a pair, dot products."""

    cosine = False

    def __init__(self, *args, fused: bool, block: int = 16, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.fused, self.block = fused, block
        self.item_BN = torch.zeros(self.pairs, 1, dtype=torch.int32, device=self.loss_B.device)
        self.touched_at_most = 3 * self.pairs

    def draw(self) -> None:
        """Draw, unless the scores' program does."""
        if not self.fused:
            self.draw_separately()

    def draw_separately(self) -> None:
        """Draw by a program of its own."""
        draws.draw_singles[(triton.cdiv(self.pairs, 128),)](
            *(self.user_B, self.number_B, self.item_BN, self.tables.mark_V[self.data.users :], self.state, self.pairs),
            *self.sampler.arguments,
            **self.sampler.options,
            MARK=True,
            BLOCK=128,
        )

    def scores(self) -> None:
        """Run the program of scores and gradients."""
        t = self.tables
        bpr[(triton.cdiv(self.pairs, self.block),)](
            *(self.user_B, self.item_B, self.number_B, self.state, t.x_VD, t.grad_VD, t.mark_V, self.item_BN),
            *(self.loss_B, self.coefficients_SC, self.pairs, self.data.users),
            *self.sampler.arguments,
            **self.sampler.options,
            DRAW=self.fused,
            D=self.dim,
            BLOCK=self.block,
        )


class SharedSoftmax(Step):
    """Negatives shared by the batch, cosine: matrix products. known: CSR of users' positives to leave out, or None."""

    def __init__(self, *args, negatives: int, known: tuple[torch.Tensor, torch.Tensor] | None = None, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.negatives, self.known = negatives, known
        device, x = self.loss_B.device, 2 * self.pairs + negatives
        self.drawn_N = torch.zeros(negatives, dtype=torch.int32, device=device)
        self.score_BN = torch.zeros(self.pairs, negatives, device=device)
        self.rows_BD = torch.zeros(self.pairs, self.dim, device=device)
        self.rows_ND = torch.zeros(negatives, self.dim, device=device)
        self.value_XD = torch.zeros(x, self.dim, device=device)
        self.row_X = torch.zeros(x, dtype=torch.int32, device=device)
        self.touched_at_most = x

    def draw(self) -> None:
        """Draw the shared negatives."""
        block, sampler = 256, self.sampler
        grid = (triton.cdiv(self.negatives + 7, block),)
        draws.draw_shared[grid](
            *(self.drawn_N, self.tables.mark_V[self.data.users :], self.state, self.negatives, *sampler.arguments),
            EVEN=sampler.even,
            MARK=True,
            BLOCK=block,
        )

    def scores(self) -> None:
        """Multiply, take the softmax, multiply back, scatter."""
        t, b = self.tables, self.pairs
        torch.add(self.drawn_N, self.data.users, out=self.row_X[2 * b :])
        torch.index_select(t.y_VD, 0, self.user_B, out=self.rows_BD)
        torch.index_select(t.y_VD, 0, self.row_X[2 * b :], out=self.rows_ND)
        torch.mm(self.rows_BD, self.rows_ND.T, out=self.score_BN)
        width = triton.next_power_of_2(self.negatives)
        offsets, known_P = self.known or (self.sampler.offsets, self.drawn_N)
        shared_softmax[(b,)](
            *(self.user_B, self.item_B, self.state, t.y_VD, self.rows_BD, self.score_BN, self.drawn_N, self.value_XD),
            *(self.row_X, self.loss_B, self.negatives, self.data.users, self.inverse_temperature, b),
            *(offsets, known_P),
            EXCLUDE=self.known is not None,
            D=self.dim,
            WIDTH=width,
            num_warps=4,
        )
        torch.mm(self.score_BN.T, self.rows_BD, out=self.value_XD[2 * b :])
        self.value_XD[:b].addmm_(self.score_BN, self.rows_ND)
        scatter(self.value_XD, self.row_X, t.grad_VD)


class ExactSoftmax(Step):
    """The softmax over all items, cosine. bounded: use the bound of cosines instead of a maximum."""

    def __init__(self, *args, bounded: bool = False, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.bounded = bounded
        device = self.loss_B.device
        self.rows_BD = torch.zeros(self.pairs, self.dim, device=device)
        self.score_BV = torch.zeros(self.pairs, self.data.items, device=device)
        self.value_BD = torch.zeros(self.pairs, self.dim, device=device)
        self.row_B = torch.zeros(self.pairs, dtype=torch.int32, device=device)

    def scores(self) -> None:
        """Multiply, take the softmax, multiply back."""
        t, users = self.tables, self.data.users
        item_rows, item_grads = t.y_VD[users:], t.grad_VD[users:]
        torch.index_select(t.y_VD, 0, self.user_B, out=self.rows_BD)
        torch.mm(self.rows_BD, item_rows.T, out=self.score_BV)
        self.softmax()
        torch.mm(self.score_BV, item_rows, out=self.value_BD)
        torch.mm(self.score_BV.T, self.rows_BD, out=item_grads)
        scatter(self.value_BD, self.row_B, t.grad_VD)
        mark_range[(triton.cdiv(self.data.items, 1024),)](t.mark_V, self.state, users, self.rows, BLOCK=1024)

    def softmax(self) -> None:
        """Replace scores by gradients."""
        exact_softmax[(self.pairs,)](
            *(self.user_B, self.item_B, self.state, self.score_BV, self.row_B, self.loss_B),
            *(self.data.items, self.inverse_temperature),
            BOUNDED=self.bounded,
            CHUNK=min(4096, triton.next_power_of_2(self.data.items)),
            num_warps=8,
        )


def scatter(value_XD: torch.Tensor, row_X: torch.Tensor, grad_VD: torch.Tensor) -> None:
    """Add rows to the gradients of the rows that row_X names; -1 names none."""
    count, dim = value_XD.shape
    scatter_rows[(triton.cdiv(count, 16),)](value_XD, row_X, grad_VD, count, D=dim, R=16)
