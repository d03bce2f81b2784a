"""Programs that Triton compiles for the optimizer on GPUs: each decays, updates and writes T rows in one pass.

T: rows of a program (a tile); X: columns of a slot, which are D or, with one accumulator a row, 1; C: coefficients of a
step; G: rows that missed steps. Tensors are pointers to contiguous memory. Common arguments: `stored`, the rows of the
shard; `local`, the `count` rows that are touched; `rows`, the rows of the shard; D; PAD, the next power of 2, to which
tiles are padded by masks; TILE, which is T. A rule without a slot gets None.

The arithmetic is that of `kernels/numba/optimizer.py`, operation by operation: IEEE division and roots, and no fused
multiply-adds (`launch.OPTIONS`). Exceptions: a sum over a row has the order of Triton's reduction, which depends on D
only, and powers are exp(n log x). Scalars are float64 until they meet a row: without the annotation Triton would pass
them as float32.
"""

import triton
import triton.language as tl

# By default an argument that happens to be 1 or a multiple of 16 causes another compilation, in the middle of a run.
_program = triton.jit(do_not_specialize=["now", "span", "count", "rows"])


@triton.jit
def _find(local, count, rows, TILE: tl.constexpr, HOLES: tl.constexpr = False):
    """Return (positions in the list, row indices, mask), each (T,), for this program.

    An invalid row index is masked out, and makes the GPU unusable for the process, as an index error of torch does:
    the error is raised at the next synchronisation. With HOLES, row -1 is none.
    """
    position_T = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    listed_T = position_T < count
    row_T = tl.load(local + position_T, mask=listed_T, other=0).to(tl.int64)
    valid_T = (row_T >= 0) & (row_T < rows)
    allowed_T = valid_T | (row_T == -1) if HOLES else valid_T
    tl.device_assert(allowed_T, "row index outside the shard")  # 0 after the end of the list
    return position_T, row_T, listed_T & valid_T


@triton.jit
def _elements(row_T, mask_T, D: tl.constexpr, PAD: tl.constexpr):
    """Return (offsets, mask) of the elements of some rows, (T, PAD); int64 as `row_T`: V * D may exceed 2^31."""
    d_D = tl.arange(0, PAD)
    return row_T[:, None] * D + d_D[None, :], mask_T[:, None] & (d_D < D)[None, :]


@triton.jit
def _load(slot, offset_TX, mask_TX):
    if slot is None:
        return 0.0
    else:
        return tl.load(slot + offset_TX, mask=mask_TX, other=0.0)


@triton.jit
def _div(x, y):
    """Return x / y; for float32, Triton's `/` is an approximation."""
    if x.dtype == tl.float32:
        return tl.div_rn(x, y)
    else:
        return x / y


@triton.jit
def _sqrt(x):
    """Return the square root; for float32, Triton's own is an approximation."""
    if x.dtype == tl.float32:
        return tl.sqrt_rn(x)
    else:
        return tl.sqrt(x)


# Updates of rows, (T, D): (rows, gradients with penalty, slots, coefficients in the order of `Rule.coefficients`,
# fraction that decay removes, () or (T, 1)) to (rows, slots), all with one signature. Scalars are float64.


@triton.jit
def sgd(w_TD, g_TD, first, second, lr, _c1, _c2, _c3, shrink, D: tl.constexpr):
    real = w_TD.dtype
    return w_TD - (shrink.to(real) * w_TD + tl.full([], lr, real) * g_TD), first, second


@triton.jit
def momentum(w_TD, g_TD, b_TD, second, lr, mu, _c2, _c3, shrink, D: tl.constexpr):
    real = w_TD.dtype
    b_TD = tl.full([], mu, real) * b_TD + g_TD
    return w_TD - (shrink.to(real) * w_TD + tl.full([], lr, real) * b_TD), b_TD, second


@triton.jit
def adagrad(w_TD, g_TD, s_TD, second, lr, eps, _c2, _c3, shrink, D: tl.constexpr):
    real = w_TD.dtype
    s_TD = s_TD + g_TD * g_TD
    change_TD = _div(tl.full([], lr, real) * g_TD, _sqrt(s_TD) + tl.full([], eps, real))
    return w_TD - (shrink.to(real) * w_TD + change_TD), s_TD, second


@triton.jit
def rowwise_adagrad(w_TD, g_TD, s_T1, second, lr, eps, _c2, _c3, shrink, D: tl.constexpr):
    real = w_TD.dtype
    s_T1 = s_T1 + _div(tl.sum(g_TD * g_TD, 1), tl.full([], D, real))[:, None]
    rate_T1 = _div(tl.full([], lr, real), _sqrt(s_T1) + tl.full([], eps, real))
    return w_TD - (shrink.to(real) * w_TD + rate_T1 * g_TD), s_T1, second


@triton.jit
def adam(w_TD, g_TD, m_TD, v_TD, lr, beta1, beta2, eps, shrink, D: tl.constexpr):
    real = w_TD.dtype
    m_TD = m_TD + tl.full([], 1 - beta1, real) * (g_TD - m_TD)
    v_TD = tl.full([], beta2, real) * v_TD + tl.full([], 1 - beta2, real) * (g_TD * g_TD)
    change_TD = _div(tl.full([], lr, real) * m_TD, _sqrt(v_TD) + tl.full([], eps, real))
    return w_TD - (shrink.to(real) * w_TD + change_TD), m_TD, v_TD


@triton.jit
def _float(w_TD):
    """Return rows as float32 if they are the bits of bfloat16, else as they are."""
    if w_TD.dtype == tl.int16:
        return (w_TD.to(tl.int32) << 16).to(tl.float32, bitcast=True)
    else:
        return w_TD


@triton.jit
def _rounded(w_TD, id_T, t, PAD: tl.constexpr):
    """Return float32 rows rounded stochastically to the bits of bfloat16, as `kernels.bfloat16.round_` does."""
    key_TD = id_T[:, None] * 0x9E3779B1 + tl.arange(0, PAD).to(tl.int64)[None, :] * 0x85EBCA77 + t * 0xC2B2AE3D
    noise_TD = key_TD.to(tl.int32)
    noise_TD = (noise_TD ^ ((noise_TD >> 16) & 0xFFFF)) * 0x7FEB352D
    noise_TD = (noise_TD ^ ((noise_TD >> 15) & 0x1FFFF)) * 0x68E31DA5
    noise_TD = noise_TD ^ ((noise_TD >> 16) & 0xFFFF)
    return ((w_TD.to(tl.int32, bitcast=True) + (noise_TD & 0xFFFF)) >> 16).to(tl.int16)


@triton.jit
def _store(stored, first, second, offset_TD, mask_TD, offset_TX, mask_TX, w_TD, first_TX, second_TX, X: tl.constexpr):
    if first is not None:
        if X == 1:
            tl.debug_barrier()  # threads may share an accumulator: all must have read it before one writes it
        tl.store(first + offset_TX, first_TX, mask=mask_TX)
    if second is not None:
        tl.store(second + offset_TX, second_TX, mask=mask_TX)
    tl.store(stored + offset_TD, w_TD, mask=mask_TD)


@_program
def step(
    stored,
    local,
    count,
    rows,
    grad,
    first,
    second,
    c0: tl.float64,
    c1: tl.float64,
    c2: tl.float64,
    c3: tl.float64,
    shrink: tl.float64,
    l2: tl.float64,
    ahead,
    index,
    ids,
    UPDATE: tl.constexpr,
    X: tl.constexpr,
    PAD_X: tl.constexpr,
    D: tl.constexpr,
    PAD: tl.constexpr,
    TILE: tl.constexpr,
    ALL_ROWS: tl.constexpr = False,
    ALL_DECAY: tl.constexpr = False,
):
    """Decay rows and apply the rule that updates them by UPDATE.

    `ahead`: None, or the six scalars of each of many steps, float64, which are then read from its line `index`: before
    them is a number that this program does not read, after them the step. Row -1 is then none; with ALL_ROWS, at
    position k it is row k, which decays if ALL_DECAY. `ids`: rows in the whole table, of rows that are bfloat16.
    """
    if ahead is not None:
        line = ahead + tl.load(index) * 8 + 1
        c0, c1, c2, c3 = tl.load(line), tl.load(line + 1), tl.load(line + 2), tl.load(line + 3)
        shrink, l2 = tl.load(line + 4), tl.load(line + 5)
    else:
        shrink, l2 = tl.full([], shrink, tl.float64), tl.full([], l2, tl.float64)
    position_T, row_T, mask_T = _find(local, count, rows, TILE, ahead is not None)
    if ALL_ROWS:
        if not ALL_DECAY:
            shrink, l2 = tl.where(mask_T, shrink, 0.0)[:, None], tl.where(mask_T, l2, 0.0)[:, None]
        row_T, mask_T = position_T, position_T < count
    offset_TD, mask_TD = _elements(row_T, mask_T, D, PAD)
    offset_TX, mask_TX = _elements(row_T, mask_T, X, PAD_X)
    grad_TD, _ = _elements(position_T, mask_T, D, PAD)
    w_TD = _float(tl.load(stored + offset_TD, mask=mask_TD, other=0))
    g_TD = tl.load(grad + grad_TD, mask=mask_TD, other=0.0)
    g_TD = g_TD + l2.to(w_TD.dtype) * w_TD
    first_TX, second_TX = _load(first, offset_TX, mask_TX), _load(second, offset_TX, mask_TX)
    w_TD, first_TX, second_TX = UPDATE(w_TD, g_TD, first_TX, second_TX, c0, c1, c2, c3, shrink, D)
    if ids is not None:
        id_T = tl.load(ids + position_T, mask=position_T < count, other=0)
        w_TD = _rounded(w_TD, id_T, tl.load(line + 6).to(tl.int64), PAD)
    _store(stored, first, second, offset_TD, mask_TD, offset_TX, mask_TX, w_TD, first_TX, second_TX, X)


@triton.jit(do_not_specialize=["count"])
def gather(stored, local, count, rows, ahead, index, out, D: tl.constexpr, PAD: tl.constexpr, TILE: tl.constexpr):
    """Copy rows times the first number of the line `index` of `ahead`, if it is not None; zeros for row -1."""
    position_T, row_T, mask_T = _find(local, count, rows, TILE, True)
    offset_TD, mask_TD = _elements(row_T, mask_T, D, PAD)
    out_TD, _ = _elements(position_T, mask_T, D, PAD)
    w_TD = _float(tl.load(stored + offset_TD, mask=mask_TD, other=0))
    if ahead is not None:
        w_TD = w_TD * tl.load(ahead + tl.load(index) * 8).to(w_TD.dtype)
    listed_TD = (position_T < count)[:, None] & (tl.arange(0, PAD) < D)[None, :]
    tl.store(out + out_TD, w_TD, mask=listed_TD)


@triton.jit
def _coefficient(step_C, c: tl.constexpr, C: tl.constexpr):
    """Return coefficient c of a step of a rule with C coefficients, 0 if it has fewer."""
    if c < C:
        return tl.load(step_C + 2 + c)
    else:
        return 0.0


@_program
def replay(
    stored,
    local,
    count,
    rows,
    since,
    first,
    second,
    coefficients,
    now,
    span,
    l2: tl.float64,
    log_decay1: tl.float64,
    log_decay2: tl.float64,
    UPDATE: tl.constexpr,
    FADES: tl.constexpr,
    C: tl.constexpr,
    X: tl.constexpr,
    PAD_X: tl.constexpr,
    D: tl.constexpr,
    PAD: tl.constexpr,
    TILE: tl.constexpr,
):
    """Apply missed steps; `coefficients` as in `MissedSteps`, but (S, 2 + C). FADES: `span` may end before the gap."""
    position_T, row_T, mask_T = _find(local, count, rows, TILE)
    offset_TD, mask_TD = _elements(row_T, mask_T, D, PAD)
    offset_TX, mask_TX = _elements(row_T, mask_T, X, PAD_X)
    w_TD = tl.load(stored + offset_TD, mask=mask_TD, other=0.0)
    first_TX, second_TX = _load(first, offset_TX, mask_TX), _load(second, offset_TX, mask_TX)
    real = w_TD.dtype
    since_T = tl.load(since + position_T, mask=mask_T, other=0).to(tl.int64)
    since_T = tl.where(mask_T, since_T, now)
    last_T = tl.minimum(since_T + span, now)
    for s in range(tl.min(since_T, 0) + 1, tl.max(last_T, 0) + 1):
        step_C = coefficients + s * (2 + C)
        c0, c1 = _coefficient(step_C, 0, C), _coefficient(step_C, 1, C)
        c2, c3 = _coefficient(step_C, 2, C), _coefficient(step_C, 3, C)
        g_TD = tl.full([], l2, real) * w_TD
        new_TD, new1_TX, new2_TX = UPDATE(w_TD, g_TD, first_TX, second_TX, c0, c1, c2, c3, tl.load(step_C + 1), D)
        missed_T1 = ((since_T < s) & (s <= last_T))[:, None]
        w_TD = tl.where(missed_T1, new_TD, w_TD)
        first_TX = tl.where(missed_T1, new1_TX, first_TX)
        if second is not None:
            second_TX = tl.where(missed_T1, new2_TX, second_TX)
    if FADES:
        rest_T = (now - last_T).to(tl.float64)  # if it is 0, the three factors are 1
        left_T = tl.load(coefficients + now * (2 + C)) / tl.load(
            coefficients + last_T * (2 + C), mask=mask_T, other=1.0
        )
        w_TD = (w_TD.to(tl.float64) * left_T[:, None]).to(real)
        first_TX *= tl.exp(rest_T * log_decay1).to(real)[:, None]
        second_TX *= tl.exp(rest_T * log_decay2).to(real)[:, None]
    _store(stored, first, second, offset_TD, mask_TD, offset_TX, mask_TX, w_TD, first_TX, second_TX, X)


@_program
def affine(stored, local, count, rows, buffer, maps, D: tl.constexpr, PAD: tl.constexpr, TILE: tl.constexpr):
    """Map (w, b) linearly; `maps`, (4, G), float64."""
    position_T, row_T, mask_T = _find(local, count, rows, TILE)
    offset_TD, mask_TD = _elements(row_T, mask_T, D, PAD)
    w_TD = tl.load(stored + offset_TD, mask=mask_TD).to(tl.float64)
    b_TD = tl.load(buffer + offset_TD, mask=mask_TD).to(tl.float64)
    m0_T = tl.load(maps + position_T, mask=mask_T)
    m1_T = tl.load(maps + count + position_T, mask=mask_T)
    m2_T = tl.load(maps + 2 * count + position_T, mask=mask_T)
    m3_T = tl.load(maps + 3 * count + position_T, mask=mask_T)
    tl.store(stored + offset_TD, m0_T[:, None] * w_TD + m1_T[:, None] * b_TD, mask=mask_TD)
    tl.store(buffer + offset_TD, m2_T[:, None] * w_TD + m3_T[:, None] * b_TD, mask=mask_TD)
