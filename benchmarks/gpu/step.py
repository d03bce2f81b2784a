"""Training steps on the device: sampled softmax (cosine), BPR (dot product), shared negatives, exact softmax.

Everything that a step needs is on the device: interactions and their order, a step counter, tables, and the optimizer's
coefficients of all steps, computed in advance. Nothing waits for the host, so a step can be captured as one CUDA graph.
Users and items share one table: item i is row `users` + i.

Lazy Adam: rows that a step touches take Adam's step; bias corrections count all steps. Decoupled decay of all rows: the
stored rows are w / scale, and the scale shrinks by 1 - lr * decay a step.

Shape suffixes: B pairs, N negatives, D dimension, V rows of the table, E interactions, S steps, R rows of a program, X
rows whose gradients are scattered.
"""
# ruff: noqa: ANN001, ANN201  (Triton infers the types of what it compiles)

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from . import draws
from .draws import COUNT, STATE, STEP, TIME, TOUCHED, DeviceSampler

_STEP, _EPOCH, _TIME = tl.constexpr(STEP), tl.constexpr(draws.EPOCH), tl.constexpr(TIME)
_TOUCHED, _COUNT = tl.constexpr(TOUCHED), tl.constexpr(COUNT)
BETA1, BETA2, EPS = 0.9, 0.999, 1e-8
NORM_EPS = 1e-12
_NORM_EPS = tl.constexpr(NORM_EPS)


class Interactions(NamedTuple):
    """Interactions on the device. Step s takes the interactions `order_E[start_S[s]:start_S[s + 1]]` of an epoch.

    `ordinal_E` holds the ordinals that determine the negatives, in the same order.
    """

    user_E: Tensor
    item_E: Tensor
    order_E: Tensor
    ordinal_E: Tensor
    start_S: Tensor

    @staticmethod
    def of(user_E: np.ndarray, item_E: np.ndarray, pairs: int, seed: int, device: str) -> "Interactions":
        """Copy interactions to the device, in a random order, in steps of `pairs`; the last step may have fewer."""
        count = len(user_E)
        order_E = np.random.default_rng(seed).permutation(count).astype(np.int32)
        start_S = np.append(np.arange(0, count, pairs), count).astype(np.int64)
        arrays = (user_E.astype(np.int32), item_E.astype(np.int32), order_E, np.arange(count, dtype=np.int32), start_S)
        return Interactions(*(torch.from_numpy(a).to(device) for a in arrays))

    @property
    def steps(self) -> int:
        """Steps of an epoch."""
        return len(self.start_S) - 1


class Table(NamedTuple):
    """The rows of users and items, and what the optimizer keeps of them.

    x_VD: stored rows; y_VD, inverse_V: rows of length one, inverse norms of the stored rows; touched_V: 1 + the last
    step that touched a row, int32; list_V: rows that a step touched, in any order.
    """

    x_VD: Tensor
    y_VD: Tensor
    inverse_V: Tensor
    grad_VD: Tensor
    moment1_VD: Tensor
    moment2_VD: Tensor
    touched_V: Tensor
    list_V: Tensor

    @staticmethod
    def of(x_VD: Tensor) -> "Table":
        """Copy initial rows."""
        inverse_V = 1 / x_VD.norm(dim=1).clamp_min(NORM_EPS)
        touched_V = torch.zeros(len(x_VD), dtype=torch.int32, device=x_VD.device)
        zeros = (torch.zeros_like(x_VD) for _ in range(3))
        return Table(x_VD.clone(), x_VD * inverse_V[:, None], inverse_V, *zeros, touched_V, touched_V.clone())


class Batch(NamedTuple):
    """The positive pairs of a step, and the loss of each. Past the count of pairs: user 0 and item 0."""

    user_B: Tensor
    item_B: Tensor
    ordinal_B: Tensor
    loss_B: Tensor


@triton.jit(do_not_specialize=["pairs"])
def gather_pairs(data, batch, touched_V, state, pairs, users, BLOCK: tl.constexpr):
    """Gather the positives of the step that the counter names, mark their rows, and reset the count of touched rows."""
    step = tl.load(state + _STEP)
    first, last = tl.load(data.start_S + step), tl.load(data.start_S + step + 1)
    b_B = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    count = tl.minimum(last - first, pairs)
    here_B, inside_B = b_B < count, b_B < pairs
    order_B = tl.load(data.order_E + first + b_B, mask=here_B, other=0)
    ordinal_B = tl.load(data.ordinal_E + first + b_B, mask=here_B, other=0)
    u_B = tl.load(data.user_E + order_B, mask=here_B, other=0)
    i_B = tl.load(data.item_E + order_B, mask=here_B, other=0)
    tl.store(batch.user_B + b_B, u_B, mask=inside_B)
    tl.store(batch.item_B + b_B, i_B, mask=inside_B)
    tl.store(batch.ordinal_B + b_B, ordinal_B, mask=inside_B)
    stamp_B = (u_B ^ u_B) + (tl.load(state + _TIME) + 1).to(tl.int32)
    tl.store(touched_V + u_B, stamp_B, mask=here_B)
    tl.store(touched_V + users + i_B, stamp_B, mask=here_B)
    if tl.program_id(0) == 0:
        tl.store(state + _COUNT, count)
        tl.store(state + _TOUCHED, first ^ first)


@triton.jit(do_not_specialize=["steps"])
def advance_counters(state, steps):
    """Move the counters to the next step."""
    step = tl.load(state + _STEP) + 1
    over = step >= steps
    tl.store(state + _TIME, tl.load(state + _TIME) + 1)
    tl.store(state + _EPOCH, tl.load(state + _EPOCH) + over.to(tl.int64))
    tl.store(state + _STEP, tl.where(over, step ^ step, step))


@triton.jit(do_not_specialize=["n"])
def sampled_softmax(
    batch,
    table,
    item_BN,
    score_BN,
    state,
    n,
    users,
    inverse_temperature,
    masses,
    UNIFORM: tl.constexpr,
    HALF_WORDS: tl.constexpr,
    EXCLUDE: tl.constexpr,
    D: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Draw a pair's n negatives; add the gradients of -log softmax of its positive among them, in the normalised rows.

    The first pass gathers rows, keeps scores in score_BN and sums e^score * row, with a running maximum for each of
    CHUNK lanes; the second adds to the rows of the items by atomics.
    """
    b = tl.program_id(0)
    pairs = tl.load(state + _COUNT)
    if b >= pairs:
        return
    user, positive = tl.load(batch.user_B + b), tl.load(batch.item_B + b)
    items, scores = item_BN + b.to(tl.int64) * n, score_BN + b.to(tl.int64) * n
    ordinal, touched_V = tl.load(batch.ordinal_B + b), table.touched_V + users
    draws.draw_for_pair(user, ordinal, n, items, touched_V, state, masses, UNIFORM, HALF_WORDS, EXCLUDE, BLOCK)
    tl.debug_barrier()  # other threads of the program read the items
    d_D, lane_N = tl.arange(0, D), tl.arange(0, CHUNK)
    item_rows, item_grads = table.y_VD + users.to(tl.int64) * D, table.grad_VD + users.to(tl.int64) * D
    user_index_D, positive_index_D = user.to(tl.int64) * D + d_D, positive.to(tl.int64) * D + d_D
    user_D, positive_D = tl.load(table.y_VD + user_index_D), tl.load(item_rows + positive_index_D)
    top_N, sum_N = tl.full([CHUNK], -1e30, tl.float32), tl.zeros([CHUNK], tl.float32)
    sum_ND = tl.zeros([CHUNK, D], tl.float32)
    for chunk in range(0, n, CHUNK):
        k_N = chunk + lane_N
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
    tl.store(batch.loss_B + b, top + tl.log(denominator) - score)
    factor = inverse_temperature / pairs.to(tl.float32)
    user_grad_D = tl.sum(sum_ND * keep_N[:, None], 0) / denominator + share * positive_D
    tl.atomic_add(table.grad_VD + user_index_D, user_grad_D * factor, sem="relaxed")
    tl.atomic_add(item_grads + positive_index_D, user_D * (share * factor), sem="relaxed")
    tl.debug_barrier()  # other threads of the program read the scores
    for chunk in range(0, n, CHUNK):
        k_N = chunk + lane_N
        here_N = k_N < n
        row_N = tl.load(items + k_N, mask=here_N, other=0).to(tl.int64) * D
        score_N = tl.load(scores + k_N, mask=here_N, other=float("-inf"))
        weight_N = tl.exp(score_N - top) * (factor / denominator)
        grad_ND = item_grads + row_N[:, None] + d_D[None, :]
        mask_ND = here_N[:, None] & (d_D >= 0)[None, :]
        tl.atomic_add(grad_ND, weight_N[:, None] * user_D[None, :], mask=mask_ND, sem="relaxed")


@triton.jit(do_not_specialize=["limit"])
def bpr(
    batch,
    table,
    negative_B,
    state,
    coefficients_SC,
    limit,
    users,
    masses,
    UNIFORM: tl.constexpr,
    HALF_WORDS: tl.constexpr,
    EXCLUDE: tl.constexpr,
    D: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Draw a negative for each of BLOCK pairs; add the gradients of softplus(negative - positive), dot products."""
    b_B, d_D = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK), tl.arange(0, D)
    pairs, time = tl.load(state + _COUNT), tl.load(state + _TIME)
    here_B = b_B < tl.minimum(pairs, limit)
    u_B, p_B = tl.load(batch.user_B + b_B, mask=here_B, other=0), tl.load(batch.item_B + b_B, mask=here_B, other=0)
    ordinal_B = tl.load(batch.ordinal_B + b_B, mask=here_B, other=0)
    n_B = draws.draw_one_each(u_B, ordinal_B, here_B, state, masses, UNIFORM, HALF_WORDS, EXCLUDE)
    tl.store(negative_B + b_B, n_B, mask=here_B)
    tl.store(table.touched_V + users + n_B, (n_B ^ n_B) + (time + 1).to(tl.int32), mask=here_B)
    mask_BD = here_B[:, None] & (d_D >= 0)[None, :]
    user_index_BD = u_B.to(tl.int64)[:, None] * D + d_D[None, :]
    positive_index_BD = (p_B + users).to(tl.int64)[:, None] * D + d_D[None, :]
    negative_index_BD = (n_B + users).to(tl.int64)[:, None] * D + d_D[None, :]
    user_BD = tl.load(table.x_VD + user_index_BD, mask=mask_BD, other=0.0)
    difference_BD = tl.load(table.x_VD + positive_index_BD, mask=mask_BD, other=0.0)
    difference_BD -= tl.load(table.x_VD + negative_index_BD, mask=mask_BD, other=0.0)
    scale = tl.load(coefficients_SC + time * 4 + 2)
    margin_B = tl.sum(user_BD * difference_BD, 1) * scale * scale
    small_B = tl.exp(-tl.abs(margin_B))
    tl.store(batch.loss_B + b_B, tl.maximum(-margin_B, 0.0) + tl.log(1.0 + small_B), mask=here_B)
    slope_B = tl.where(margin_B >= 0, small_B, 1.0) / (1.0 + small_B) * (scale / pairs.to(tl.float32))
    step_BD = user_BD * slope_B[:, None]
    tl.atomic_add(table.grad_VD + user_index_BD, difference_BD * -slope_B[:, None], mask=mask_BD, sem="relaxed")
    tl.atomic_add(table.grad_VD + positive_index_BD, -step_BD, mask=mask_BD, sem="relaxed")
    tl.atomic_add(table.grad_VD + negative_index_BD, step_BD, mask=mask_BD, sem="relaxed")


@triton.jit(do_not_specialize=["rows"])
def list_touched(table, state, rows, BLOCK: tl.constexpr):
    """List the rows that this step touched, once after each `gather_pairs`, which resets their count."""
    r_R = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    stamp = (tl.load(state + _TIME) + 1).to(tl.int32)
    touched_R = tl.load(table.touched_V + r_R, mask=r_R < rows, other=0) == stamp
    one_R = touched_R.to(tl.int32)
    index_R = tl.cumsum(one_R, 0) - one_R
    first = tl.atomic_add(state + _TOUCHED, tl.sum(one_R, 0).to(tl.int64), sem="relaxed")
    tl.store(table.list_V + first + index_R, r_R, mask=touched_R)


@triton.jit(do_not_specialize=["rows"])
def adam(
    table,
    state,
    coefficients_SC,
    rows,
    rest1,
    beta2,
    rest2,
    COSINE: tl.constexpr,
    LISTED: tl.constexpr,
    D: tl.constexpr,
    R: tl.constexpr,
):
    """Take Adam's step on the touched rows and reset their gradients.

    COSINE: gradients are those of normalised rows; write the new normalised rows. LISTED: rows of `list_touched`, else
    the touched ones of all rows.
    """
    index_R, d_D = tl.program_id(0).to(tl.int64) * R + tl.arange(0, R), tl.arange(0, D)
    time = tl.load(state + _TIME)
    if LISTED:
        count = tl.load(state + _TOUCHED)
        if tl.program_id(0).to(tl.int64) * R >= count:
            return
        here_R = index_R < count
        r_R = tl.load(table.list_V + index_R, mask=here_R, other=0).to(tl.int64)
    else:
        r_R = index_R
        here_R = tl.load(table.touched_V + r_R, mask=r_R < rows, other=0) == (time + 1).to(tl.int32)
    mask_RD = here_R[:, None] & (d_D >= 0)[None, :]
    index_RD = r_R[:, None] * D + d_D[None, :]
    size, eps = tl.load(coefficients_SC + time * 4), tl.load(coefficients_SC + time * 4 + 1)
    scale, inverse_scale = tl.load(coefficients_SC + time * 4 + 2), tl.load(coefficients_SC + time * 4 + 3)
    g_RD = tl.load(table.grad_VD + index_RD, mask=mask_RD, other=0.0)
    tl.store(table.grad_VD + index_RD, tl.zeros([R, D], tl.float32), mask=mask_RD)
    if COSINE:
        y_RD = tl.load(table.y_VD + index_RD, mask=mask_RD, other=0.0)
        inverse_R = tl.load(table.inverse_V + r_R, mask=here_R, other=0.0)
        g_RD = (g_RD - y_RD * tl.sum(y_RD * g_RD, 1)[:, None]) * (inverse_R / scale)[:, None]
    m_RD = tl.load(table.moment1_VD + index_RD, mask=mask_RD, other=0.0)
    v_RD = tl.load(table.moment2_VD + index_RD, mask=mask_RD, other=0.0)
    x_RD = tl.load(table.x_VD + index_RD, mask=mask_RD, other=0.0)
    m_RD += rest1 * (g_RD - m_RD)
    v_RD = beta2 * v_RD + rest2 * (g_RD * g_RD)
    x_RD -= size * m_RD / (tl.sqrt(v_RD) + eps) * inverse_scale
    tl.store(table.moment1_VD + index_RD, m_RD, mask=mask_RD)
    tl.store(table.moment2_VD + index_RD, v_RD, mask=mask_RD)
    tl.store(table.x_VD + index_RD, x_RD, mask=mask_RD)
    if COSINE:
        inverse_R = 1.0 / tl.maximum(tl.sqrt(tl.sum(x_RD * x_RD, 1)), _NORM_EPS)
        tl.debug_barrier()  # threads that share a row have read its old inverse norm
        tl.store(table.y_VD + index_RD, x_RD * inverse_R[:, None], mask=mask_RD)
        tl.store(table.inverse_V + r_R, inverse_R, mask=here_R)


@triton.jit
def is_positive(user, item_N, indptr, indices):
    """Return which items are among a user's ascending positives."""
    start = tl.load(indptr + user)
    length = tl.load(indptr + user + 1) - start
    before_N = draws.count_up_to(item_N - 1, indices, start, length, draws.search_steps(length))
    return tl.load(indices + start + before_N, mask=before_N < length, other=-1) == item_N


@triton.jit(do_not_specialize=["n"])
def shared_softmax(
    batch,
    y_VD,
    rows_BD,
    score_BN,
    item_N,
    value_XD,
    row_X,
    state,
    n,
    users,
    inverse_temperature,
    limit,
    positives,
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
    user, positive = tl.load(batch.user_B + b), tl.load(batch.item_B + b)
    scores = score_BN + b.to(tl.int64) * n
    score_N = tl.load(scores + k_N, mask=here_N, other=float("-inf")) * inverse_temperature
    if EXCLUDE:
        drawn_N = tl.load(item_N + k_N, mask=here_N, other=0)
        score_N = tl.where(is_positive(user, drawn_N, positives[0], positives[1]), float("-inf"), score_N)
    user_D = tl.load(rows_BD + b.to(tl.int64) * D + d_D)
    positive_D = tl.load(y_VD + (positive + users).to(tl.int64) * D + d_D)
    score = tl.sum(user_D * positive_D, 0) * inverse_temperature
    top = tl.maximum(tl.max(score_N, 0), score)
    numerator_N, numerator = tl.exp(score_N - top), tl.exp(score - top)
    denominator = tl.sum(numerator_N, 0) + numerator
    factor = tl.where(here, inverse_temperature / pairs.to(tl.float32), 0.0)
    share = (numerator / denominator - 1.0) * factor
    tl.store(scores + k_N, numerator_N * (factor / denominator), mask=here_N)
    tl.store(batch.loss_B + b, tl.where(here, top + tl.log(denominator) - score, 0.0))
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
def exact_softmax(batch, score_BV, row_B, state, items, inverse_temperature, CHUNK: tl.constexpr):
    """Replace dot products with all items by the gradients of -log softmax of the positive; one program a pair."""
    b = tl.program_id(0)
    pairs = tl.load(state + _COUNT)
    here = b < pairs
    scores = score_BV + b.to(tl.int64) * items
    k_N = tl.arange(0, CHUNK)
    top_N, sum_N = tl.full([CHUNK], -1e30, tl.float32), tl.zeros([CHUNK], tl.float32)
    for chunk in range(0, items, CHUNK):
        score_N = tl.load(scores + chunk + k_N, mask=chunk + k_N < items, other=float("-inf")) * inverse_temperature
        higher_N = tl.maximum(top_N, score_N)
        sum_N = sum_N * tl.exp(top_N - higher_N) + tl.exp(score_N - higher_N)
        top_N = higher_N
    top = tl.max(top_N, 0)
    denominator = tl.sum(sum_N * tl.exp(top_N - top), 0)
    positive = tl.load(batch.item_B + b)
    score = tl.load(scores + positive) * inverse_temperature
    factor = tl.where(here, inverse_temperature / pairs.to(tl.float32), 0.0)
    tl.store(batch.loss_B + b, tl.where(here, top + tl.log(denominator) - score, 0.0))
    tl.store(row_B + b, tl.where(here, tl.load(batch.user_B + b), -1))
    tl.debug_barrier()  # all threads have read the positive's score
    for chunk in range(0, items, CHUNK):
        mask_N = chunk + k_N < items
        score_N = tl.load(scores + chunk + k_N, mask=mask_N, other=float("-inf")) * inverse_temperature
        weight_N = tl.exp(score_N - top) / denominator - tl.where(chunk + k_N == positive, 1.0, 0.0)
        tl.store(scores + chunk + k_N, weight_N * factor, mask=mask_N)


@triton.jit(do_not_specialize=["rows"])
def touch_range(touched_V, state, first, rows, BLOCK: tl.constexpr):
    """Mark all rows from `first` on as touched."""
    r_R = first + tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    stamp = (tl.load(state + _TIME) + 1).to(tl.int32)
    tl.store(touched_V + r_R, (r_R ^ r_R).to(tl.int32) + stamp, mask=r_R < rows)


def coefficients(lr: float, decay: float, steps: int) -> np.ndarray:
    """Return the coefficients of each step, (S, 4) float64.

    They are step size and epsilon, both with bias corrections, scale before the step, and 1 / scale after it.
    """
    t = np.arange(1, steps + 1)
    correction = np.sqrt(1 - BETA2**t)
    scale = (1 - lr * decay) ** np.arange(steps + 1)
    return np.stack([lr * correction / (1 - BETA1**t), EPS * correction, scale[:-1], 1 / scale[1:]], 1)


class Step(ABC):
    """One training step as launches of programs, part by part; subclasses compute scores and gradients.

    Args:
        negatives: of a pair or of the batch; 1 for BPR, 0 for the exact softmax.
        listed: whether the optimizer takes a list of touched rows; else it sweeps over all rows.
        positives: CSR of users' items, to leave out of shared negatives.
    """

    cosine = True

    def __init__(
        self,
        data: Interactions,
        table: Table,
        sampler: DeviceSampler,
        users: int,
        pairs: int,
        negatives: int,
        coefficients_SC: Tensor,
        temperature: float = 0.1,
        listed: bool = False,
        positives: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        self.data, self.table, self.sampler, self.users, self.pairs = data, table, sampler, users, pairs
        self.negatives, self.positives = negatives, positives
        self.coefficients_SC, self.inverse_temperature, self.listed = coefficients_SC, 1.0 / temperature, listed
        (self.rows, self.dim), self.device = table.x_VD.shape, table.x_VD.device
        self.state = torch.zeros(STATE, dtype=torch.int64, device=self.device)
        self.batch = Batch(*(self.empty(pairs, dtype=torch.int32) for _ in range(3)), self.empty(pairs))
        self.touched_limit = self.rows

    def empty(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return an array on the device, of zeros."""
        return torch.zeros(shape, dtype=dtype, device=self.device)

    def gather(self) -> None:
        """Gather the step's positives."""
        gather_pairs[(triton.cdiv(self.pairs, 256),)](
            self.data, self.batch, self.table.touched_V, self.state, self.pairs, self.users, BLOCK=256
        )

    @abstractmethod
    def scores(self) -> None:
        """Draw negatives, compute scores, losses and gradients."""

    def list_rows(self) -> None:
        """List the touched rows."""
        list_touched[(triton.cdiv(self.rows, 1024),)](self.table, self.state, self.rows, BLOCK=1024)

    def optimize(self) -> None:
        """Take the optimizer's step."""
        rows = min(self.rows, self.touched_limit) if self.listed else self.rows
        options = {"COSINE": self.cosine, "LISTED": self.listed, "D": self.dim, "R": 16}
        adam[(triton.cdiv(rows, 16),)](
            self.table, self.state, self.coefficients_SC, self.rows, 1 - BETA1, BETA2, 1 - BETA2, **options
        )

    def advance(self) -> None:
        """Count the step."""
        advance_counters[(1,)](self.state, self.data.steps)

    def __call__(self) -> None:
        """Take one step."""
        self.gather()
        self.scores()
        if self.listed:
            self.list_rows()
        self.optimize()
        self.advance()


class SampledSoftmax(Step):
    """Each pair's own negatives, cosine."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.item_BN = self.empty(self.pairs, self.negatives, dtype=torch.int32)
        self.score_BN = self.empty(self.pairs, self.negatives)
        self.touched_limit = self.pairs * (self.negatives + 2)

    def scores(self) -> None:
        """Run the program of draws, scores and gradients."""
        block = draws.draw_shape(self.negatives, self.sampler.half_words)
        sampled_softmax[(self.pairs,)](
            *(self.batch, self.table, self.item_BN, self.score_BN, self.state, self.negatives, self.users),
            *(self.inverse_temperature, self.sampler.masses),
            **self.sampler.options,
            **{"D": self.dim, "CHUNK": 32, "BLOCK": block, "num_warps": 4},
        )


class BPR(Step):
    """One negative a pair, dot products."""

    cosine = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.item_BN = self.empty(self.pairs, 1, dtype=torch.int32)
        self.touched_limit = 3 * self.pairs

    def scores(self) -> None:
        """Run the program of draws, scores and gradients."""
        bpr[(triton.cdiv(self.pairs, 16),)](
            *(self.batch, self.table, self.item_BN, self.state, self.coefficients_SC, self.pairs, self.users),
            *(self.sampler.masses,),
            **self.sampler.options,
            **{"D": self.dim, "BLOCK": 16},
        )


class SharedSoftmax(Step):
    """Negatives shared by the batch, cosine: matrix products."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        negatives = self.negatives
        self.touched_limit = 2 * self.pairs + negatives
        self.drawn_N = self.empty(negatives, dtype=torch.int32)
        self.score_BN = self.empty(self.pairs, negatives)
        self.rows_BD, self.rows_ND = self.empty(self.pairs, self.dim), self.empty(negatives, self.dim)
        self.value_XD = self.empty(self.touched_limit, self.dim)  # gradients of users, positives and negatives
        self.row_X = self.empty(self.touched_limit, dtype=torch.int32)

    def draw(self) -> None:
        """Draw the shared negatives."""
        draws.draw_shared[(triton.cdiv(self.negatives + 7, 256),)](
            *(self.drawn_N, self.table.touched_V[self.users :], self.state, self.negatives, self.sampler.masses),
            **{"UNIFORM": self.sampler.uniform, "BLOCK": 256},
        )

    def scores(self) -> None:
        """Draw, multiply, take the softmax, multiply back, scatter."""
        self.draw()
        y_VD, b = self.table.y_VD, self.pairs
        torch.add(self.drawn_N, self.users, out=self.row_X[2 * b :])
        torch.index_select(y_VD, 0, self.batch.user_B, out=self.rows_BD)
        torch.index_select(y_VD, 0, self.row_X[2 * b :], out=self.rows_ND)
        torch.mm(self.rows_BD, self.rows_ND.T, out=self.score_BN)
        shared_softmax[(b,)](
            *(self.batch, y_VD, self.rows_BD, self.score_BN, self.drawn_N, self.value_XD, self.row_X, self.state),
            *(self.negatives, self.users, self.inverse_temperature, b, self.positives or (self.drawn_N, self.drawn_N)),
            **{"EXCLUDE": self.positives is not None, "D": self.dim, "num_warps": 4},
            WIDTH=triton.next_power_of_2(self.negatives),
        )
        torch.mm(self.score_BN.T, self.rows_BD, out=self.value_XD[2 * b :])
        self.value_XD[:b].addmm_(self.score_BN, self.rows_ND)
        scatter(self.value_XD, self.row_X, self.table.grad_VD)


class ExactSoftmax(Step):
    """The softmax over all items, cosine."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.rows_BD, self.value_BD = self.empty(self.pairs, self.dim), self.empty(self.pairs, self.dim)
        self.score_BV = self.empty(self.pairs, self.rows - self.users)
        self.row_B = self.empty(self.pairs, dtype=torch.int32)

    def scores(self) -> None:
        """Multiply, take the softmax, multiply back, scatter."""
        table, items = self.table, self.rows - self.users
        item_rows, item_grads = table.y_VD[self.users :], table.grad_VD[self.users :]
        torch.index_select(table.y_VD, 0, self.batch.user_B, out=self.rows_BD)
        torch.mm(self.rows_BD, item_rows.T, out=self.score_BV)
        exact_softmax[(self.pairs,)](
            *(self.batch, self.score_BV, self.row_B, self.state, items, self.inverse_temperature),
            **{"CHUNK": min(4096, triton.next_power_of_2(items)), "num_warps": 8},
        )
        torch.mm(self.score_BV, item_rows, out=self.value_BD)
        torch.mm(self.score_BV.T, self.rows_BD, out=item_grads)
        scatter(self.value_BD, self.row_B, table.grad_VD)
        touch_range[(triton.cdiv(items, 1024),)](table.touched_V, self.state, self.users, self.rows, BLOCK=1024)


def scatter(value_XD: Tensor, row_X: Tensor, grad_VD: Tensor) -> None:
    """Add rows to the gradients of the rows in row_X; -1 is none."""
    count, dim = value_XD.shape
    scatter_rows[(triton.cdiv(count, 16),)](value_XD, row_X, grad_VD, count, D=dim, R=16)


STEPS: dict[str, type[Step]] = {"softmax": SampledSoftmax, "bpr": BPR, "shared": SharedSoftmax, "exact": ExactSoftmax}
