"""The programs that Triton compiles for GPUs: each takes R rows through decay, rule and writing in one pass.

Arguments as in `loops.py`, tensors as pointers to contiguous memory; after the row numbers, how many they are (`count`)
and how many rows the shard has (`rows`); at the end what is known when compiling: D, PAD (the next power of 2, to which
rows are padded by masks; _RD below is of this width), and ROWS, which is R.

The arithmetic is that of `loops.py`, operation by operation: IEEE division and roots, and no fused multiply-adds
(`gpu.py` switches them off). Exceptions: a sum over a row has the order of Triton's reduction, which depends on D and
nothing else, and powers are exp(n log beta). Numbers are float64 until they meet a row: without the annotation Triton
would hand them over as float32.
"""

import triton
import triton.language as tl

# By default a number that happens to be 1 or a multiple of 16 is compiled for anew, in the middle of a run.
_program = triton.jit(do_not_specialize=["now", "span", "count", "rows"])


@triton.jit
def _find(local, count, rows, ROWS: tl.constexpr):
    """(places in the list, row numbers, which of them are there) for this program.

    A row that the shard does not have is left alone, and ends the process's use of the GPU as an index error of torch
    does: reported wherever the host next waits.
    """
    place_R = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    listed_R = place_R < count
    row_R = tl.load(local + place_R, mask=listed_R, other=0).to(tl.int64)
    known_R = (row_R >= 0) & (row_R < rows)
    tl.device_assert(known_R, "a row number that the shard does not have")  # places past the list hold 0
    return place_R, row_R, listed_R & known_R


@triton.jit
def _elements(row_R, here_R, D: tl.constexpr, PAD: tl.constexpr):
    """(offsets, which of them are there) of the elements of some rows; int64 as `row_R` is: V * D may exceed 2^31."""
    d_D = tl.arange(0, PAD)
    return row_R[:, None] * D + d_D[None, :], here_R[:, None] & (d_D < D)[None, :]


@triton.jit
def _start(
    stored,
    local,
    count,
    rows,
    grad,
    l2,
    D: tl.constexpr,
    PAD: tl.constexpr,
    ROWS: tl.constexpr,
):
    """What all rules begin with: (row numbers, which are there, offsets, which are there, rows, gradients with their
    penalty)."""
    place_R, row_R, here_R = _find(local, count, rows, ROWS)
    at_RD, mask_RD = _elements(row_R, here_R, D, PAD)
    grad_RD, _ = _elements(place_R, here_R, D, PAD)
    w_RD = tl.load(stored + at_RD, mask=mask_RD, other=0.0)
    g_RD = tl.load(grad + grad_RD, mask=mask_RD, other=0.0)
    return row_R, here_R, at_RD, mask_RD, w_RD, g_RD + tl.full([], l2, w_RD.dtype) * w_RD


@triton.jit
def _over(x, y):
    """x / y; of float32, Triton's `/` is an approximation."""
    if x.dtype == tl.float32:
        return tl.div_rn(x, y)
    else:
        return x / y


@triton.jit
def _root(x):
    """The square root; of float32, Triton's own is an approximation."""
    if x.dtype == tl.float32:
        return tl.sqrt_rn(x)
    else:
        return tl.sqrt(x)


@triton.jit
def _adagrad(w_RD, g_RD, s_RD, lr, eps, keep):
    s_RD = s_RD + g_RD * g_RD
    return keep * w_RD - _over(lr * g_RD, _root(s_RD) + eps), s_RD


@triton.jit
def _rowwise_adagrad(w_RD, g_RD, s_R, lr, eps, keep, D: tl.constexpr):
    s_R = s_R + _over(tl.sum(g_RD * g_RD, 1), tl.full([], D, s_R.dtype))
    rate_R = _over(lr, _root(s_R) + eps)
    return keep * w_RD - rate_R[:, None] * g_RD, s_R


@triton.jit
def _adam(w_RD, g_RD, m_RD, v_RD, lr, rest1, beta2, rest2, eps, keep):
    m_RD = m_RD + rest1 * (g_RD - m_RD)
    v_RD = beta2 * v_RD + rest2 * (g_RD * g_RD)
    return keep * w_RD - _over(lr * m_RD, _root(v_RD) + eps), m_RD, v_RD


@_program
def affine(stored, local, count, rows, buffer, maps, D: tl.constexpr, PAD: tl.constexpr, ROWS: tl.constexpr):
    """`maps` in the dtype of the rows."""
    place_R, row_R, here_R = _find(local, count, rows, ROWS)
    at_RD, mask_RD = _elements(row_R, here_R, D, PAD)
    w_RD, b_RD = tl.load(stored + at_RD, mask=mask_RD), tl.load(buffer + at_RD, mask=mask_RD)
    m0_R = tl.load(maps + place_R, mask=here_R)
    m1_R = tl.load(maps + count + place_R, mask=here_R)
    m2_R = tl.load(maps + 2 * count + place_R, mask=here_R)
    m3_R = tl.load(maps + 3 * count + place_R, mask=here_R)
    tl.store(stored + at_RD, m0_R[:, None] * w_RD + m1_R[:, None] * b_RD, mask=mask_RD)
    tl.store(buffer + at_RD, m2_R[:, None] * w_RD + m3_R[:, None] * b_RD, mask=mask_RD)


@_program
def sgd(
    stored,
    local,
    count,
    rows,
    grad,
    lr: tl.float64,
    shrink: tl.float64,
    l2: tl.float64,
    D: tl.constexpr,
    PAD: tl.constexpr,
    ROWS: tl.constexpr,
):
    row_R, here_R, at_RD, mask_RD, w_RD, g_RD = _start(stored, local, count, rows, grad, l2, D, PAD, ROWS)
    real = w_RD.dtype
    keep = tl.full([], shrink, real)
    w_RD = keep * w_RD - tl.full([], lr, real) * g_RD
    tl.store(stored + at_RD, w_RD, mask=mask_RD)


@_program
def momentum(
    stored,
    local,
    count,
    rows,
    grad,
    buffer,
    lr: tl.float64,
    momentum: tl.float64,
    shrink: tl.float64,
    l2: tl.float64,
    D: tl.constexpr,
    PAD: tl.constexpr,
    ROWS: tl.constexpr,
):
    row_R, here_R, at_RD, mask_RD, w_RD, g_RD = _start(stored, local, count, rows, grad, l2, D, PAD, ROWS)
    real = w_RD.dtype
    b_RD = tl.load(buffer + at_RD, mask=mask_RD, other=0.0)
    keep = tl.full([], shrink, real)
    b_RD = tl.full([], momentum, real) * b_RD + g_RD
    w_RD = keep * w_RD - tl.full([], lr, real) * b_RD
    tl.store(buffer + at_RD, b_RD, mask=mask_RD)
    tl.store(stored + at_RD, w_RD, mask=mask_RD)


@_program
def adagrad(
    stored,
    local,
    count,
    rows,
    grad,
    sums,
    lr: tl.float64,
    eps: tl.float64,
    shrink: tl.float64,
    l2: tl.float64,
    D: tl.constexpr,
    PAD: tl.constexpr,
    ROWS: tl.constexpr,
):
    row_R, here_R, at_RD, mask_RD, w_RD, g_RD = _start(stored, local, count, rows, grad, l2, D, PAD, ROWS)
    real = w_RD.dtype
    s_RD = tl.load(sums + at_RD, mask=mask_RD, other=0.0)
    keep = tl.full([], shrink, real)
    lr, eps = tl.full([], lr, real), tl.full([], eps, real)
    w_RD, s_RD = _adagrad(w_RD, g_RD, s_RD, lr, eps, keep)
    tl.store(sums + at_RD, s_RD, mask=mask_RD)
    tl.store(stored + at_RD, w_RD, mask=mask_RD)


@_program
def rowwise_adagrad(
    stored,
    local,
    count,
    rows,
    grad,
    sums,
    lr: tl.float64,
    eps: tl.float64,
    shrink: tl.float64,
    l2: tl.float64,
    D: tl.constexpr,
    PAD: tl.constexpr,
    ROWS: tl.constexpr,
):
    row_R, here_R, at_RD, mask_RD, w_RD, g_RD = _start(stored, local, count, rows, grad, l2, D, PAD, ROWS)
    real = w_RD.dtype
    s_R = tl.load(sums + row_R, mask=here_R, other=0.0)
    keep = tl.full([], shrink, real)
    lr, eps = tl.full([], lr, real), tl.full([], eps, real)
    w_RD, s_R = _rowwise_adagrad(w_RD, g_RD, s_R, lr, eps, keep, D)
    tl.debug_barrier()  # several threads may hold one row's accumulator: all must have read it before one writes
    tl.store(sums + row_R, s_R, mask=here_R)
    tl.store(stored + at_RD, w_RD, mask=mask_RD)


@_program
def adam(
    stored,
    local,
    count,
    rows,
    grad,
    moment1,
    moment2,
    lr: tl.float64,
    beta1: tl.float64,
    beta2: tl.float64,
    eps: tl.float64,
    shrink: tl.float64,
    l2: tl.float64,
    D: tl.constexpr,
    PAD: tl.constexpr,
    ROWS: tl.constexpr,
):
    row_R, here_R, at_RD, mask_RD, w_RD, g_RD = _start(stored, local, count, rows, grad, l2, D, PAD, ROWS)
    real = w_RD.dtype
    m_RD = tl.load(moment1 + at_RD, mask=mask_RD, other=0.0)
    v_RD = tl.load(moment2 + at_RD, mask=mask_RD, other=0.0)
    keep = tl.full([], shrink, real)
    rest1, rest2 = tl.full([], 1 - beta1, real), tl.full([], 1 - beta2, real)
    lr, beta2, eps = tl.full([], lr, real), tl.full([], beta2, real), tl.full([], eps, real)
    w_RD, m_RD, v_RD = _adam(w_RD, g_RD, m_RD, v_RD, lr, rest1, beta2, rest2, eps, keep)
    tl.store(moment1 + at_RD, m_RD, mask=mask_RD)
    tl.store(moment2 + at_RD, v_RD, mask=mask_RD)
    tl.store(stored + at_RD, w_RD, mask=mask_RD)


@triton.jit
def _gap(since, place_R, here_R, now, span):
    """(last step taken before each row's gap, last step of it to replay, and both over all rows of the program)."""
    since_R = tl.load(since + place_R, mask=here_R, other=0).to(tl.int64)
    since_R = tl.where(here_R, since_R, now)
    last_R = tl.minimum(since_R + span, now)
    return since_R, last_R, tl.min(since_R, 0), tl.max(last_R, 0)


@_program
def replay_adagrad(
    stored,
    local,
    count,
    rows,
    since,
    sums,
    coefficients,
    now,
    span,
    l2: tl.float64,
    D: tl.constexpr,
    PAD: tl.constexpr,
    ROWS: tl.constexpr,
):
    """`numbers` as in `Past`, but step by step: C of them each."""
    C: tl.constexpr = 4
    place_R, row_R, here_R = _find(local, count, rows, ROWS)
    at_RD, mask_RD = _elements(row_R, here_R, D, PAD)
    w_RD = tl.load(stored + at_RD, mask=mask_RD, other=0.0)
    s_RD = tl.load(sums + at_RD, mask=mask_RD, other=0.0)
    real = w_RD.dtype
    l2 = tl.full([], l2, real)
    since_R, last_R, first, last = _gap(since, place_R, here_R, now, span)
    for step in range(first + 1, last + 1):
        keep = tl.load(coefficients + step * C + 1).to(real)
        lr = tl.load(coefficients + step * C + 2).to(real)
        eps = tl.load(coefficients + step * C + 3).to(real)
        missed_R1 = (since_R < step)[:, None]
        new_RD, sum_RD = _adagrad(w_RD, l2 * w_RD, s_RD, lr, eps, keep)
        w_RD, s_RD = tl.where(missed_R1, new_RD, w_RD), tl.where(missed_R1, sum_RD, s_RD)
    tl.store(sums + at_RD, s_RD, mask=mask_RD)
    tl.store(stored + at_RD, w_RD, mask=mask_RD)


@_program
def replay_rowwise_adagrad(
    stored,
    local,
    count,
    rows,
    since,
    sums,
    coefficients,
    now,
    span,
    l2: tl.float64,
    D: tl.constexpr,
    PAD: tl.constexpr,
    ROWS: tl.constexpr,
):
    C: tl.constexpr = 4
    place_R, row_R, here_R = _find(local, count, rows, ROWS)
    at_RD, mask_RD = _elements(row_R, here_R, D, PAD)
    w_RD = tl.load(stored + at_RD, mask=mask_RD, other=0.0)
    s_R = tl.load(sums + row_R, mask=here_R, other=0.0)
    real = w_RD.dtype
    l2 = tl.full([], l2, real)
    since_R, last_R, first, last = _gap(since, place_R, here_R, now, span)
    for step in range(first + 1, last + 1):
        keep = tl.load(coefficients + step * C + 1).to(real)
        lr = tl.load(coefficients + step * C + 2).to(real)
        eps = tl.load(coefficients + step * C + 3).to(real)
        missed_R = since_R < step
        new_RD, sum_R = _rowwise_adagrad(w_RD, l2 * w_RD, s_R, lr, eps, keep, D)
        w_RD, s_R = tl.where(missed_R[:, None], new_RD, w_RD), tl.where(missed_R, sum_R, s_R)
    tl.debug_barrier()  # as in rowwise_adagrad
    tl.store(sums + row_R, s_R, mask=here_R)
    tl.store(stored + at_RD, w_RD, mask=mask_RD)


@_program
def replay_adam(
    stored,
    local,
    count,
    rows,
    since,
    moment1,
    moment2,
    coefficients,
    beta1: tl.float64,
    beta2: tl.float64,
    log_beta1: tl.float64,
    log_beta2: tl.float64,
    now,
    span,
    l2: tl.float64,
    D: tl.constexpr,
    PAD: tl.constexpr,
    ROWS: tl.constexpr,
):
    C: tl.constexpr = 6
    place_R, row_R, here_R = _find(local, count, rows, ROWS)
    at_RD, mask_RD = _elements(row_R, here_R, D, PAD)
    w_RD = tl.load(stored + at_RD, mask=mask_RD, other=0.0)
    m_RD = tl.load(moment1 + at_RD, mask=mask_RD, other=0.0)
    v_RD = tl.load(moment2 + at_RD, mask=mask_RD, other=0.0)
    real = w_RD.dtype
    rest1, rest2 = tl.full([], 1 - beta1, real), tl.full([], 1 - beta2, real)
    l2, beta2 = tl.full([], l2, real), tl.full([], beta2, real)
    since_R, last_R, first, last = _gap(since, place_R, here_R, now, span)
    for step in range(first + 1, last + 1):
        keep = tl.load(coefficients + step * C + 1).to(real)
        lr = tl.load(coefficients + step * C + 2).to(real)
        eps = tl.load(coefficients + step * C + 5).to(real)
        missed_R1 = ((since_R < step) & (step <= last_R))[:, None]
        new_RD, first_RD, second_RD = _adam(w_RD, l2 * w_RD, m_RD, v_RD, lr, rest1, beta2, rest2, eps, keep)
        w_RD = tl.where(missed_R1, new_RD, w_RD)
        m_RD = tl.where(missed_R1, first_RD, m_RD)
        v_RD = tl.where(missed_R1, second_RD, v_RD)
    rest_R = (now - last_R).to(tl.float64)  # where it is 0, the three factors are 1
    left_R = tl.load(coefficients + now * C) / tl.load(coefficients + last_R * C, mask=here_R, other=1.0)
    w_RD *= left_R.to(real)[:, None]
    m_RD *= tl.exp(rest_R * log_beta1).to(real)[:, None]
    v_RD *= tl.exp(rest_R * log_beta2).to(real)[:, None]
    tl.store(moment1 + at_RD, m_RD, mask=mask_RD)
    tl.store(moment2 + at_RD, v_RD, mask=mask_RD)
    tl.store(stored + at_RD, w_RD, mask=mask_RD)
