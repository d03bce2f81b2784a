"""The loops that numba compiles. Arguments: stored_VD, local_U, grad_UD, the accumulators in the order of
`Rule.slots`, the numbers in the order of `Rule.numbers`, then `Decay` spelled out; arrays are contiguous.

Arithmetic is in the dtype of the rows, hence the many casts: a float64 scalar would turn all of it to float64.
A step that owes nothing is given an empty written_V.
"""

import math
from collections.abc import Callable
from types import FunctionType
from typing import NamedTuple

from numba import njit, prange


class Loop(NamedTuple):
    """One loop, compiled twice at most: without threads there is no pool, and nothing to be wrong with it."""

    serial: Callable[..., None]
    parallel: Callable[..., None]


def _loop(function: Callable[..., None]) -> Loop:
    # No fastmath: results would depend on how the compiler vectorises on this machine.
    options = {"cache": True, "nogil": True, "error_model": "numpy"}
    return Loop(njit(**options)(function), njit(parallel=True, **options)(_namesake(function)))


def _namesake(function: Callable[..., None]) -> Callable[..., None]:
    """The function under another name: numba's cache on disk tells by it, and not by how a function was compiled."""
    same = FunctionType(function.__code__, function.__globals__)
    same.__qualname__ = f"{function.__qualname__}_parallel"
    return same


@njit
def _check(local_U, rows):
    """Compiled code does not check indices: a wrong one would write into somebody else's memory."""
    for row in local_U:
        if row < 0 or row >= rows:
            raise IndexError("a row number that the shard does not have")


@njit
def _factor(written_V, sums_S, now, row):
    return math.exp(sums_S[now] - sums_S[written_V[row]])


@njit
def _pay(shrink, written_V, sums_S, now, row):
    """The factor of a touched row, after which it owes nothing."""
    if len(written_V) == 0:
        return shrink
    factor = _factor(written_V, sums_S, now, row)
    written_V[row] = now
    return factor * shrink


def _read(stored_VD, local_U, written_V, sums_S, now, rows_UD):
    _check(local_U, len(stored_VD))
    for u in prange(len(local_U)):
        row = local_U[u]
        factor = stored_VD.dtype.type(_factor(written_V, sums_S, now, row))
        w_D, out_D = stored_VD[row], rows_UD[u]
        for d in range(len(w_D)):
            out_D[d] = factor * w_D[d]


def _settle(stored_VD, written_V, sums_S, now):
    for row in prange(len(stored_VD)):
        factor = stored_VD.dtype.type(_factor(written_V, sums_S, now, row))
        w_D = stored_VD[row]
        for d in range(len(w_D)):
            w_D[d] *= factor


def _sgd(stored_VD, local_U, grad_UD, lr, shrink, l2, written_V, sums_S, now):
    _check(local_U, len(stored_VD))
    real = stored_VD.dtype.type
    lr, l2 = real(lr), real(l2)
    for u in prange(len(local_U)):
        row = local_U[u]
        keep = real(_pay(shrink, written_V, sums_S, now, row))
        w_D, g_D = stored_VD[row], grad_UD[u]
        for d in range(len(w_D)):
            g = g_D[d] + l2 * w_D[d]
            w_D[d] = keep * w_D[d] - lr * g


def _adagrad(stored_VD, local_U, grad_UD, sum_VD, lr, eps, shrink, l2, written_V, sums_S, now):
    _check(local_U, len(stored_VD))
    real = stored_VD.dtype.type
    lr, eps, l2 = real(lr), real(eps), real(l2)
    for u in prange(len(local_U)):
        row = local_U[u]
        keep = real(_pay(shrink, written_V, sums_S, now, row))
        w_D, g_D, s_D = stored_VD[row], grad_UD[u], sum_VD[row]
        for d in range(len(w_D)):
            g = g_D[d] + l2 * w_D[d]
            s = s_D[d] + g * g
            s_D[d] = s
            w_D[d] = keep * w_D[d] - lr * g / (math.sqrt(s) + eps)


def _lazy_adam(stored_VD, local_U, grad_UD, m_VD, v_VD, lr, beta1, beta2, eps, shrink, l2, written_V, sums_S, now):
    _check(local_U, len(stored_VD))
    real = stored_VD.dtype.type
    lr, beta2, eps, l2 = real(lr), real(beta2), real(eps), real(l2)
    rest1, rest2 = real(1 - beta1), real(1 - beta2)
    for u in prange(len(local_U)):
        row = local_U[u]
        keep = real(_pay(shrink, written_V, sums_S, now, row))
        w_D, g_D, m_D, v_D = stored_VD[row], grad_UD[u], m_VD[row], v_VD[row]
        for d in range(len(w_D)):
            g = g_D[d] + l2 * w_D[d]
            m = m_D[d] + rest1 * (g - m_D[d])
            v = beta2 * v_D[d] + rest2 * (g * g)
            m_D[d], v_D[d] = m, v
            w_D[d] = keep * w_D[d] - lr * m / (math.sqrt(v) + eps)


READ, SETTLE = _loop(_read), _loop(_settle)
SGD, ADAGRAD, LAZY_ADAM = _loop(_sgd), _loop(_adagrad), _loop(_lazy_adam)
