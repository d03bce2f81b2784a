"""The loops that numba compiles. Arguments: stored_VD, local_U, grad_UD, the accumulators in the order of
`Rule.slots`, the numbers in the order of `Rule.numbers`, then `Decay` spelled out; arrays are contiguous.

Arithmetic is in the dtype of the rows, hence the many casts: a float64 scalar would turn all of it to float64.

What limits them is waiting for memory, so rows are asked for some places ahead. Measured on 70,000 rows and one thread
(6,000 touched, D = 64, lazy_adam): prefetching took a fifth off a step.
"""

import math

import numpy as np
from numba import njit, prange

from distrec.kernels.numba.intrinsics import LINE, prefetch
from distrec.kernels.numba.launch import loop as _loop

BLOCK = 64  # rows
AHEAD = 6  # rows


@njit
def _checked(local_U, rows):
    """The number of blocks. Compiled code does not check indices: a wrong one would write into others' memory."""
    for row in local_U:
        if row < 0 or row >= rows:
            raise IndexError("a row number that the shard does not have")
    return (len(local_U) + BLOCK - 1) // BLOCK


@njit
def _ahead(rows_VD, local_U, u):
    """Asks for the row that comes some places later."""
    if u + AHEAD < len(local_U):
        for d in range(0, rows_VD.shape[1], LINE):
            prefetch(rows_VD, local_U[u + AHEAD], d)


@njit
def _places(block, local_U):
    return range(block * BLOCK, min((block + 1) * BLOCK, len(local_U)))


def _read(stored_VD, local_U, factor, rows_UD):
    factor = stored_VD.dtype.type(factor)
    for block in prange(_checked(local_U, len(stored_VD))):
        for u in _places(block, local_U):
            _ahead(stored_VD, local_U, u)
            w_D, out_D = stored_VD[local_U[u]], rows_UD[u]
            for d in range(len(w_D)):
                out_D[d] = factor * w_D[d]


@njit(cache=True, nogil=True, error_model="numpy")
def _take_stale(local_U, written_V, now):
    """One after the other, as the same row may come twice."""
    _checked(local_U, len(written_V))
    rows_K, since_K = np.empty(len(local_U), np.int64), np.empty(len(local_U), np.int32)
    count = 0
    for u in range(len(local_U)):
        if u + BLOCK < len(local_U):
            prefetch(written_V, local_U[u + BLOCK], 0)
        row = local_U[u]
        if written_V[row] < now:
            rows_K[count], since_K[count] = row, written_V[row]
            written_V[row] = now
            count += 1
    return rows_K[:count], since_K[:count]


def _mix(stored_VD, buffer_VD, rows_K, map_4K):
    real = stored_VD.dtype.type
    for block in prange(_checked(rows_K, len(stored_VD))):
        for k in _places(block, rows_K):
            _ahead(stored_VD, rows_K, k)
            _ahead(buffer_VD, rows_K, k)
            w_D, b_D = stored_VD[rows_K[k]], buffer_VD[rows_K[k]]
            m0, m1, m2, m3 = real(map_4K[0, k]), real(map_4K[1, k]), real(map_4K[2, k]), real(map_4K[3, k])
            for d in range(len(w_D)):
                w, b = w_D[d], b_D[d]
                w_D[d], b_D[d] = m0 * w + m1 * b, m2 * w + m3 * b


@njit
def _sgd_row(w_D, g_D, lr, keep, l2):
    for d in range(len(w_D)):
        g = g_D[d] + l2 * w_D[d]
        w_D[d] = keep * w_D[d] - lr * g


@njit
def _momentum_row(w_D, g_D, b_D, lr, momentum, keep, l2):
    for d in range(len(w_D)):
        b = momentum * b_D[d] + (g_D[d] + l2 * w_D[d])
        b_D[d] = b
        w_D[d] = keep * w_D[d] - lr * b


@njit
def _adagrad_row(w_D, g_D, s_D, lr, eps, keep, l2):
    for d in range(len(w_D)):
        g = g_D[d] + l2 * w_D[d]
        s = s_D[d] + g * g
        s_D[d] = s
        w_D[d] = keep * w_D[d] - lr * g / (math.sqrt(s) + eps)


@njit
def _mean_square(g_D, w_D, l2):
    """Of the gradient with its penalty. Four sums, as a single one would wait for itself at each element."""
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


@njit
def _rowwise_adagrad_row(w_D, g_D, s, lr, eps, keep, l2):
    """Returns the row's accumulator, which was `s`."""
    s += _mean_square(g_D, w_D, l2)
    rate = lr / (math.sqrt(s) + eps)
    for d in range(len(w_D)):
        g = g_D[d] + l2 * w_D[d]
        w_D[d] = keep * w_D[d] - rate * g
    return s


@njit
def _adam_row(w_D, g_D, m_D, v_D, lr, rest1, beta2, rest2, eps, keep, l2):
    for d in range(len(w_D)):
        g = g_D[d] + l2 * w_D[d]
        m = m_D[d] + rest1 * (g - m_D[d])
        v = beta2 * v_D[d] + rest2 * (g * g)
        m_D[d], v_D[d] = m, v
        w_D[d] = keep * w_D[d] - lr * m / (math.sqrt(v) + eps)


def _sgd(stored_VD, local_U, grad_UD, lr, keep, l2):
    real = stored_VD.dtype.type
    lr, keep, l2 = real(lr), real(keep), real(l2)
    for block in prange(_checked(local_U, len(stored_VD))):
        for u in _places(block, local_U):
            _ahead(stored_VD, local_U, u)
            _sgd_row(stored_VD[local_U[u]], grad_UD[u], lr, keep, l2)


def _momentum(stored_VD, local_U, grad_UD, buffer_VD, lr, momentum, keep, l2):
    real = stored_VD.dtype.type
    lr, momentum, keep, l2 = real(lr), real(momentum), real(keep), real(l2)
    for block in prange(_checked(local_U, len(stored_VD))):
        for u in _places(block, local_U):
            _ahead(stored_VD, local_U, u)
            _ahead(buffer_VD, local_U, u)
            row = local_U[u]
            _momentum_row(stored_VD[row], grad_UD[u], buffer_VD[row], lr, momentum, keep, l2)


def _adagrad(stored_VD, local_U, grad_UD, sum_VD, lr, eps, keep, l2):
    real = stored_VD.dtype.type
    lr, eps, keep, l2 = real(lr), real(eps), real(keep), real(l2)
    for block in prange(_checked(local_U, len(stored_VD))):
        for u in _places(block, local_U):
            _ahead(stored_VD, local_U, u)
            _ahead(sum_VD, local_U, u)
            row = local_U[u]
            _adagrad_row(stored_VD[row], grad_UD[u], sum_VD[row], lr, eps, keep, l2)


def _rowwise_adagrad(stored_VD, local_U, grad_UD, sum_V, lr, eps, keep, l2):
    real = stored_VD.dtype.type
    lr, eps, keep, l2 = real(lr), real(eps), real(keep), real(l2)
    for block in prange(_checked(local_U, len(stored_VD))):
        for u in _places(block, local_U):
            prefetch(sum_V, local_U[u], 0)
        for u in _places(block, local_U):
            _ahead(stored_VD, local_U, u)
            row = local_U[u]
            sum_V[row] = _rowwise_adagrad_row(stored_VD[row], grad_UD[u], sum_V[row], lr, eps, keep, l2)


def _adam(stored_VD, local_U, grad_UD, m_VD, v_VD, lr, beta1, beta2, eps, keep, l2):
    real = stored_VD.dtype.type
    rest1, rest2 = real(1 - beta1), real(1 - beta2)  # of beta2 in float32, 1 - 0.999 would be off by 1e-5
    lr, beta2, eps, keep, l2 = real(lr), real(beta2), real(eps), real(keep), real(l2)
    for block in prange(_checked(local_U, len(stored_VD))):
        for u in _places(block, local_U):
            _ahead(stored_VD, local_U, u)
            _ahead(m_VD, local_U, u)
            _ahead(v_VD, local_U, u)
            row = local_U[u]
            _adam_row(stored_VD[row], grad_UD[u], m_VD[row], v_VD[row], lr, rest1, beta2, rest2, eps, keep, l2)


def _replay_adagrad(stored_VD, rows_K, since_K, sum_VD, coefficients_CS, now, span, l2):
    real, zero_D = stored_VD.dtype.type, np.zeros(stored_VD.shape[1], stored_VD.dtype)
    for k in prange(len(rows_K)):
        w_D, s_D = stored_VD[rows_K[k]], sum_VD[rows_K[k]]
        for s in range(since_K[k] + 1, now + 1):
            keep, lr, eps = real(coefficients_CS[1, s]), real(coefficients_CS[2, s]), real(coefficients_CS[3, s])
            _adagrad_row(w_D, zero_D, s_D, lr, eps, keep, real(l2))


def _replay_rowwise_adagrad(stored_VD, rows_K, since_K, sum_V, coefficients_CS, now, span, l2):
    real, zero_D = stored_VD.dtype.type, np.zeros(stored_VD.shape[1], stored_VD.dtype)
    for k in prange(len(rows_K)):
        w_D, total = stored_VD[rows_K[k]], sum_V[rows_K[k]]
        for s in range(since_K[k] + 1, now + 1):
            keep, lr, eps = real(coefficients_CS[1, s]), real(coefficients_CS[2, s]), real(coefficients_CS[3, s])
            total = _rowwise_adagrad_row(w_D, zero_D, total, lr, eps, keep, real(l2))
        sum_V[rows_K[k]] = total


def _replay_adam(stored_VD, rows_K, since_K, m_VD, v_VD, coefficients_CS, now, span, l2):
    real, zero_D = stored_VD.dtype.type, np.zeros(stored_VD.shape[1], stored_VD.dtype)
    beta1, beta2 = coefficients_CS[3, now], coefficients_CS[4, now]
    rest1, rest2 = real(1 - beta1), real(1 - beta2)
    for k in prange(len(rows_K)):
        row = rows_K[k]
        w_D, m_D, v_D = stored_VD[row], m_VD[row], v_VD[row]
        last = min(now, since_K[k] + span)
        for s in range(since_K[k] + 1, last + 1):
            keep, lr, eps = real(coefficients_CS[1, s]), real(coefficients_CS[2, s]), real(coefficients_CS[5, s])
            _adam_row(w_D, zero_D, m_D, v_D, lr, rest1, real(beta2), rest2, eps, keep, real(l2))
        if last < now:
            left = real(coefficients_CS[0, now] / coefficients_CS[0, last])
            fade1, fade2 = real(beta1 ** (now - last)), real(beta2 ** (now - last))
            for d in range(len(w_D)):
                w_D[d] *= left
                m_D[d] *= fade1
                v_D[d] *= fade2


READ, AFFINE = _loop(_read), _loop(_mix)
SGD, MOMENTUM, ADAGRAD, ROWWISE_ADAGRAD, ADAM = (
    _loop(_sgd),
    _loop(_momentum),
    _loop(_adagrad),
    _loop(_rowwise_adagrad),
    _loop(_adam),
)
REPLAY_ADAGRAD, REPLAY_ROWWISE_ADAGRAD, REPLAY_ADAM = (
    _loop(_replay_adagrad),
    _loop(_replay_rowwise_adagrad),
    _loop(_replay_adam),
)
TAKE_STALE = _take_stale
