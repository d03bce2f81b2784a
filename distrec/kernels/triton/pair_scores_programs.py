"""Triton programs for GPUs: scores of pairs, and sums of weighted rows for their gradients.

Tensors are pointers to contiguous memory. The last arguments are compile-time constants: D; WIDTH, a power of 2, the
elements of a slice of a row; BLOCK, the items of a program; CHUNK, the summands of a program; AHEAD, how many rows it
loads ahead. Multiply and add are not fused (`launch.py`). Offsets are int64, as V * D may exceed 2^31.
"""

import triton
import triton.language as tl

# By default Triton recompiles for an integer that is 1 or a multiple of 16, in the middle of a run.
_program = triton.jit(do_not_specialize=["n", "pairs", "users", "items", "times"])


@_program
def scores(
    user_rows,
    item_rows,
    user_index,
    item_index,
    out,
    n,
    users,
    items,
    D: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Compute the scores of one pair's user with BLOCK of its n items.

    An index outside the rows is not read, and fails like an index error of torch: the process loses the GPU, and the
    error is reported at the next synchronisation.
    """
    b = tl.program_id(0).to(tl.int64)
    k_N = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    present_N = k_N < n
    u = tl.load(user_index + b).to(tl.int64)
    v_N = tl.load(item_index + b * n + k_N, mask=present_N, other=0).to(tl.int64)
    user_valid = (u >= 0) & (u < users)
    valid_N = (v_N >= 0) & (v_N < items)
    tl.device_assert(user_valid & (valid_N | ~present_N), "an index outside the rows of the batch")
    loaded_N = valid_N & present_N
    total_N = tl.zeros([BLOCK], out.dtype.element_ty)
    for first in range(0, D, WIDTH):
        d_D = first + tl.arange(0, WIDTH)
        user_D = tl.load(user_rows + u * D + d_D, mask=user_valid & (d_D < D), other=0.0)
        mask_ND = loaded_N[:, None] & (d_D < D)[None, :]
        item_ND = tl.load(item_rows + v_N[:, None] * D + d_D[None, :], mask=mask_ND, other=0.0)
        total_N += tl.sum(item_ND * user_D[None, :], 1)
    tl.store(out + b * n + k_N, total_N, mask=present_N)


@_program
def add_gradients(
    user_rows,
    item_rows,
    user_index,
    item_index,
    grad,
    user_grads,
    item_grads,
    pairs,
    n,
    D: tl.constexpr,
    WIDTH: tl.constexpr,
    PAIRS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Add the gradients of the scores of PAIRS pairs to those of their rows, in any order; both start at 0.

    With one pair its items are taken BLOCK at a time, and the sum for its user is added once.
    """
    k_N = tl.arange(0, PAIRS * BLOCK)
    b_N = tl.program_id(0).to(tl.int64) * PAIRS + k_N // BLOCK
    paired_N = b_N < pairs
    user_N = tl.load(user_index + b_N, mask=paired_N, other=0).to(tl.int64)
    for first in range(0, D, WIDTH):
        d_D = first + tl.arange(0, WIDTH)
        within_ND = paired_N[:, None] & (d_D < D)[None, :]
        user_offset_ND = user_N[:, None] * D + d_D[None, :]
        user_ND = tl.load(user_rows + user_offset_ND, mask=within_ND, other=0.0)
        sum_ND = tl.zeros([PAIRS * BLOCK, WIDTH], user_rows.dtype.element_ty)
        for start in range(0, n, BLOCK):
            j_N = start + k_N % BLOCK
            here_N = paired_N & (j_N < n)
            weight_N = tl.load(grad + b_N * n + j_N, mask=here_N, other=0.0)
            here_N = here_N & (weight_N != 0)
            item_N = tl.load(item_index + b_N * n + j_N, mask=here_N, other=0).to(tl.int64)
            offset_ND = item_N[:, None] * D + d_D[None, :]
            mask_ND = here_N[:, None] & (d_D < D)[None, :]
            sum_ND += weight_N[:, None] * tl.load(item_rows + offset_ND, mask=mask_ND, other=0.0)
            tl.atomic_add(item_grads + offset_ND, weight_N[:, None] * user_ND, mask=mask_ND, sem="relaxed")
        if PAIRS == 1:
            user = tl.load(user_index + tl.program_id(0)).to(tl.int64)
            tl.atomic_add(user_grads + user * D + d_D, tl.sum(sum_ND, 0), mask=d_D < D, sem="relaxed")
        else:
            tl.atomic_add(user_grads + user_offset_ND, sum_ND, mask=within_ND, sem="relaxed")


@triton.jit
def _sum(
    rows,
    row_index,
    weight,
    start,
    end,
    out,
    D: tl.constexpr,
    WIDTH: tl.constexpr,
    CHUNK: tl.constexpr,
    AHEAD: tl.constexpr,
):
    """Write one slice of the sum of weight[p] * rows[row_index[p]] over p from `start` to `end`, CHUNK at most, in
    ascending order."""
    end = tl.minimum(end, start + CHUNK)
    d_D = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    total_D = tl.zeros([WIDTH], out.dtype.element_ty)
    for first in range(start, end, AHEAD):
        # Unrolled, so that AHEAD loads are in flight at a time. Past the end 0 is added.
        for k in tl.static_range(AHEAD):
            inside = first + k < end
            row = tl.load(row_index + first + k, mask=inside, other=0).to(tl.int64)
            w = tl.load(weight + first + k, mask=inside, other=0.0)
            total_D += w * tl.load(rows + row * D + d_D, mask=inside & (d_D < D), other=0.0)
    tl.store(out + d_D, total_D, mask=d_D < D)


@_program
def first_chunks(
    rows,
    row_index,
    weight,
    starts,
    times,
    out,
    D: tl.constexpr,
    WIDTH: tl.constexpr,
    CHUNK: tl.constexpr,
    AHEAD: tl.constexpr,
):
    """Write row y of `out`, (Y, D), from its first chunk. Its summands: times * starts[y] to times * starts[y + 1]."""
    y = tl.program_id(0).to(tl.int64)
    start, end = tl.load(starts + y) * times, tl.load(starts + y + 1) * times
    _sum(rows, row_index, weight, start, end, out + y * D, D, WIDTH, CHUNK, AHEAD)


@triton.jit
def _later(starts, times, owner, CHUNK: tl.constexpr):
    """Return (number of this program's chunk within its row, start of the chunk, the row, end of the row).

    Each chunk after a row's first starts in one block of CHUNK summands, and no two start in the same block: the
    block's program owns the chunk. The block's first summand belongs to that row, as it lies in the row's previous
    chunk or starts this one.
    """
    block = tl.program_id(0).to(tl.int64) + 1
    y = tl.load(owner + block * CHUNK // times).to(tl.int64)
    start, end = tl.load(starts + y) * times, tl.load(starts + y + 1) * times
    k = block - start // CHUNK
    return k, start + k * CHUNK, y, end


@_program
def later_chunks(
    rows,
    row_index,
    weight,
    starts,
    times,
    owner,
    out,
    D: tl.constexpr,
    WIDTH: tl.constexpr,
    CHUNK: tl.constexpr,
    AHEAD: tl.constexpr,
):
    """Write row e of `out`, (E, D), from the chunk that starts in block e + 1, if that is not the first of its row."""
    k, start, _, end = _later(starts, times, owner, CHUNK)
    if (k > 0) & (start < end):
        _sum(rows, row_index, weight, start, end, out + tl.program_id(0).to(tl.int64) * D, D, WIDTH, CHUNK, AHEAD)


@_program
def add_chunks(
    later, starts, times, owner, out, D: tl.constexpr, WIDTH: tl.constexpr, CHUNK: tl.constexpr, AHEAD: tl.constexpr
):
    """Add the later chunks of a row to its row of `out`, in order. The program of the first later chunk does it."""
    k, start, y, end = _later(starts, times, owner, CHUNK)
    if (k == 1) & (start < end):
        first = tl.program_id(0).to(tl.int64)
        d_D = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
        total_D = tl.load(out + y * D + d_D, mask=d_D < D)
        for chunk in tl.range(first, first + tl.cdiv(end - start, CHUNK), loop_unroll_factor=AHEAD):
            total_D += tl.load(later + chunk * D + d_D, mask=d_D < D)
        tl.store(out + y * D + d_D, total_D, mask=d_D < D)
