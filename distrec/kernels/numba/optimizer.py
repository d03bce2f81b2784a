"""Optimizer kernels for CPUs: numba loops that decay, update and write each row while it is in cache.

A row is updated by one thread in a fixed order of operations, so the result does not depend on the number of threads.
Arithmetic is in the dtype of the rows, hence the casts: one float64 scalar would promote all of it to float64. Arrays
are contiguous. X: columns of a slot, which are D, 1 (one accumulator a row) or 0 (the rule has no such slot); C:
coefficients of a step; G: rows that missed steps; S: steps.

The loops are bound by memory latency, so rows are prefetched. Measured on 70,000 rows and one thread (6,000 touched,
D = 64, lazy_adam): prefetching saved a fifth of a step.
"""

import math

import numpy as np
import torch
from numba import njit, prange
from numba.extending import register_jitable
from torch import Tensor

from distrec.core.buffer_pool import empty
from distrec.kernels.numba.intrinsics import LINE, prefetch
from distrec.kernels.numba.launch import Loop, loop, run
from distrec.kernels.optimizer import Decay, MissedSteps, ReferenceKernels, UpdateRule, padded

BLOCK = 64  # rows
AHEAD = 6  # rows


@njit
def _count_blocks(local_U, rows):
    """Return the number of blocks. Compiled code does not check indices: a wrong one would write to other memory."""
    for row in local_U:
        if row < 0 or row >= rows:
            raise IndexError("row index outside the shard")
    return (len(local_U) + BLOCK - 1) // BLOCK


@njit
def _block(block, local_U):
    return range(block * BLOCK, min((block + 1) * BLOCK, len(local_U)))


@njit
def _prefetch_ahead(rows_VX, local_U, u):
    if u + AHEAD < len(local_U):
        for x in range(0, rows_VX.shape[1], LINE):
            prefetch(rows_VX, local_U[u + AHEAD], x)


def _read(stored_VD, local_U, factor, rows_UD):
    factor = stored_VD.dtype.type(factor)
    for block in prange(_count_blocks(local_U, len(stored_VD))):
        for u in _block(block, local_U):
            _prefetch_ahead(stored_VD, local_U, u)
            w_D, out_D = stored_VD[local_U[u]], rows_UD[u]
            for d in range(len(w_D)):
                out_D[d] = factor * w_D[d]


@njit(cache=True, nogil=True, error_model="numpy")
def _take_stale(local_U, written_V, now):
    """Implement `ReferenceKernels.take_stale` serially, as a row may repeat."""
    _count_blocks(local_U, len(written_V))
    local_G, since_G = np.empty(len(local_U), np.int64), np.empty(len(local_U), np.int32)
    count = 0
    for u in range(len(local_U)):
        if u + BLOCK < len(local_U):
            prefetch(written_V, local_U[u + BLOCK], 0)
        row = local_U[u]
        if written_V[row] < now:
            local_G[count], since_G[count] = row, written_V[row]
            written_V[row] = now
            count += 1
    return local_G[:count], since_G[:count]


def _affine(stored_VD, buffer_VD, local_G, map_4G):
    real = stored_VD.dtype.type
    for block in prange(_count_blocks(local_G, len(stored_VD))):
        for g in _block(block, local_G):
            _prefetch_ahead(stored_VD, local_G, g)
            _prefetch_ahead(buffer_VD, local_G, g)
            w_D, b_D = stored_VD[local_G[g]], buffer_VD[local_G[g]]
            m0, m1, m2, m3 = map_4G[0, g], map_4G[1, g], map_4G[2, g], map_4G[3, g]
            for d in range(len(w_D)):
                w, b = w_D[d], b_D[d]
                w_D[d], b_D[d] = real(m0 * w + m1 * b), real(m2 * w + m3 * b)


# Updates of one row, of one signature: (row, gradient, slots, coefficients in the order of `Rule.coefficients`, decay).
# Functions of `register_jitable`, as `loop` explains. Inlined, as a call counts references to its arrays: with calls a
# step of lazy_adam or rowwise_adagrad took a quarter longer. (A decorator shared by all would inline only the first.)


@register_jitable(inline="always")
def _sgd(w_D, g_D, _first_X, _second_X, lr, _c1, _c2, _c3, shrink, l2):
    real = w_D.dtype.type
    lr, shrink = real(lr), real(shrink)
    for d in range(len(w_D)):
        g = g_D[d] + l2 * w_D[d]
        w_D[d] -= shrink * w_D[d] + lr * g


@register_jitable(inline="always")
def _momentum(w_D, g_D, b_D, _second_X, lr, momentum, _c2, _c3, shrink, l2):
    real = w_D.dtype.type
    lr, momentum, shrink = real(lr), real(momentum), real(shrink)
    for d in range(len(w_D)):
        b = momentum * b_D[d] + (g_D[d] + l2 * w_D[d])
        b_D[d] = b
        w_D[d] -= shrink * w_D[d] + lr * b


@register_jitable(inline="always")
def _adagrad(w_D, g_D, sum_D, _second_X, lr, eps, _c2, _c3, shrink, l2):
    real = w_D.dtype.type
    lr, eps, shrink = real(lr), real(eps), real(shrink)
    for d in range(len(w_D)):
        g = g_D[d] + l2 * w_D[d]
        total = sum_D[d] + g * g
        sum_D[d] = total
        w_D[d] -= shrink * w_D[d] + lr * g / (math.sqrt(total) + eps)


@register_jitable
def _mean_square(g_D, w_D, l2):
    """Return the mean square of the gradient with its penalty. Four sums, as additions to one wait for each other."""
    a = b = c = e = g_D.dtype.type(0)
    whole = len(g_D) // 4 * 4
    for d in range(0, whole, 4):
        a += (g_D[d] + l2 * w_D[d]) ** 2
        b += (g_D[d + 1] + l2 * w_D[d + 1]) ** 2
        c += (g_D[d + 2] + l2 * w_D[d + 2]) ** 2
        e += (g_D[d + 3] + l2 * w_D[d + 3]) ** 2
    for d in range(whole, len(g_D)):
        a += (g_D[d] + l2 * w_D[d]) ** 2
    return ((a + b) + (c + e)) / g_D.dtype.type(len(g_D))


@register_jitable(inline="always")
def _rowwise_adagrad(w_D, g_D, sum_1, _second_X, lr, eps, _c2, _c3, shrink, l2):
    real = w_D.dtype.type
    lr, eps, shrink = real(lr), real(eps), real(shrink)
    total = sum_1[0] + _mean_square(g_D, w_D, l2)
    sum_1[0] = total
    rate = lr / (math.sqrt(total) + eps)
    for d in range(len(w_D)):
        g = g_D[d] + l2 * w_D[d]
        w_D[d] -= shrink * w_D[d] + rate * g


@register_jitable(inline="always")
def _adam(w_D, g_D, m_D, v_D, lr, beta1, beta2, eps, shrink, l2):
    real = w_D.dtype.type
    rest1, rest2 = real(1 - beta1), real(1 - beta2)  # 1 - beta2 in float32 would be off by 1e-5 for 0.999
    lr, beta2, eps, shrink = real(lr), real(beta2), real(eps), real(shrink)
    for d in range(len(w_D)):
        g = g_D[d] + l2 * w_D[d]
        m = m_D[d] + rest1 * (g - m_D[d])
        v = beta2 * v_D[d] + rest2 * (g * g)
        m_D[d], v_D[d] = m, v
        w_D[d] -= shrink * w_D[d] + lr * m / (math.sqrt(v) + eps)


@njit
def _scale(row_X, factor):
    for x in range(len(row_X)):
        row_X[x] *= factor


def _step_loop(update):
    """Return the loop over the touched rows of a rule that updates one row by `update`."""

    def step(stored_VD, local_U, grad_UD, first_VX, second_VX, c0, c1, c2, c3, shrink, l2):
        l2 = stored_VD.dtype.type(l2)
        for block in prange(_count_blocks(local_U, len(stored_VD))):
            for u in _block(block, local_U):
                _prefetch_ahead(stored_VD, local_U, u)
                _prefetch_ahead(first_VX, local_U, u)
                _prefetch_ahead(second_VX, local_U, u)
                row = local_U[u]
                update(stored_VD[row], grad_UD[u], first_VX[row], second_VX[row], c0, c1, c2, c3, shrink, l2)

    return loop(step)


def _replay_loop(update):
    """Return the loop over rows that missed steps of a rule that updates one row by `update`."""

    def replay(stored_VD, local_G, since_G, first_VX, second_VX, coefficients_CS, now, span, l2, decay1, decay2):
        real, zero_D = stored_VD.dtype.type, np.zeros(stored_VD.shape[1], stored_VD.dtype)
        used = len(coefficients_CS)
        for g in prange(len(local_G)):
            row = local_G[g]
            w_D, first_X, second_X = stored_VD[row], first_VX[row], second_VX[row]
            last = min(now, since_G[g] + span)
            for s in range(since_G[g] + 1, last + 1):
                shrink, c0 = coefficients_CS[1, s], coefficients_CS[2, s]
                c1 = coefficients_CS[3, s] if used > 3 else 0.0
                c2 = coefficients_CS[4, s] if used > 4 else 0.0
                c3 = coefficients_CS[5, s] if used > 5 else 0.0
                update(w_D, zero_D, first_X, second_X, c0, c1, c2, c3, shrink, real(l2))
            if last < now:
                left = coefficients_CS[0, now] / coefficients_CS[0, last]
                for d in range(len(w_D)):
                    w_D[d] = real(left * w_D[d])  # in float64: close to 1, `left` would be rounded
                _scale(first_X, real(decay1 ** (now - last)))
                _scale(second_X, real(decay2 ** (now - last)))

    return loop(replay)


_READ, _AFFINE = loop(_read), loop(_affine)
_UPDATES = {
    "sgd": _sgd,
    "momentum": _momentum,
    "adagrad": _adagrad,
    "rowwise_adagrad": _rowwise_adagrad,
    "lazy_adam": _adam,
    "adam": _adam,
}
STEPS: dict[str, Loop] = {rule: _step_loop(update) for rule, update in _UPDATES.items()}
REPLAYS: dict[str, Loop] = {rule: _replay_loop(update) for rule, update in _UPDATES.items()}


def _slots(stored_VD: Tensor, rule: UpdateRule) -> list[np.ndarray]:
    """Return the two slots that loops expect, (V, X)."""
    slots = [slot.numpy() if slot.dim() == 2 else slot.numpy()[:, None] for slot in rule.slots.values()]
    return slots + [stored_VD.numpy()[:, :0]] * (2 - len(slots))


class NumbaKernels(ReferenceKernels):
    """Implements `ReferenceKernels` with as many threads as torch uses; `scale_` is the reference's."""

    def read(self, stored_VD: Tensor, local_U: Tensor, factor: float) -> Tensor:
        rows_UD = empty([len(local_U), stored_VD.shape[1]], stored_VD)
        run(_READ, stored_VD.numpy(), local_U.numpy(), factor, rows_UD.numpy())
        return rows_UD

    def step_(
        self,
        stored_VD: Tensor,
        local_U: Tensor,
        grad_UD: Tensor,
        decay: Decay,
        rule: UpdateRule,
        coefficients: tuple[float, ...],
    ) -> None:
        grad_UD = grad_UD.contiguous()  # each layout would be one compilation
        rows = stored_VD.numpy(), local_U.numpy(), grad_UD.numpy(), *_slots(stored_VD, rule)
        run(STEPS[rule.name], *rows, *padded(coefficients), decay.shrink, decay.l2)

    def take_stale(self, local_U: Tensor, written_V: Tensor, now: int) -> tuple[Tensor, Tensor]:
        local_G, since_G = _take_stale(local_U.numpy(), written_V.numpy(), now)
        return torch.from_numpy(local_G), torch.from_numpy(since_G)

    def replay_(
        self, stored_VD: Tensor, local_G: Tensor, since_G: Tensor, missed: MissedSteps, rule: UpdateRule
    ) -> None:
        rows = stored_VD.numpy(), local_G.numpy(), since_G.numpy(), *_slots(stored_VD, rule)
        steps = missed.coefficients_CS.numpy(), missed.now, missed.span, missed.l2
        run(REPLAYS[rule.name], *rows, *steps, *(rule.idle_decay or (1.0, 1.0)))

    def affine_(self, stored_VD: Tensor, buffer_VD: Tensor, local_G: Tensor, map_4G: Tensor) -> None:
        run(_AFFINE, stored_VD.numpy(), buffer_VD.numpy(), local_G.numpy(), map_4G.numpy())
