"""The programs that Triton compiles for GPUs: scores of pairs, and sums of weighted rows, which their gradients are.

Tensors are pointers to contiguous memory. At the end of the arguments stands what is known when compiling: D; WIDTH,
a power of 2, of which as many slices as it takes make up a row; BLOCK, the items of a program; CHUNK, the places that
one program adds; AHEAD, how many of them it asks for at a time. Nothing is fused (`compiled/gpu.py`), and offsets are
int64, as V * D may exceed 2^31.
"""

import triton
import triton.language as tl

# By default a number that happens to be 1 or a multiple of 16 is compiled for anew, in the middle of a run.
_program = triton.jit(do_not_specialize=["n", "users", "items", "times"])


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
    """Of one pair's user with BLOCK of its n items.

    A place outside the rows is not read, and ends the process's use of the GPU as an index error of torch does:
    reported wherever the host next waits.
    """
    b = tl.program_id(0).to(tl.int64)
    k_N = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    listed_N = k_N < n
    u = tl.load(user_index + b).to(tl.int64)
    v_N = tl.load(item_index + b * n + k_N, mask=listed_N, other=0).to(tl.int64)
    user_known = (u >= 0) & (u < users)
    known_N = (v_N >= 0) & (v_N < items)
    tl.device_assert(user_known & (known_N | ~listed_N), "a place outside the rows of the batch")
    here_N = known_N & listed_N
    total_N = tl.zeros([BLOCK], out.dtype.element_ty)
    for first in range(0, D, WIDTH):
        d_D = first + tl.arange(0, WIDTH)
        user_D = tl.load(user_rows + u * D + d_D, mask=user_known & (d_D < D), other=0.0)
        mask_ND = here_N[:, None] & (d_D < D)[None, :]
        item_ND = tl.load(item_rows + v_N[:, None] * D + d_D[None, :], mask=mask_ND, other=0.0)
        total_N += tl.sum(item_ND * user_D[None, :], 1)
    tl.store(out + b * n + k_N, total_N, mask=listed_N)


@triton.jit
def _sum(
    rows,
    row_index,
    weight,
    begin,
    end,
    out,
    D: tl.constexpr,
    WIDTH: tl.constexpr,
    CHUNK: tl.constexpr,
    AHEAD: tl.constexpr,
):
    """Writes one slice of the sum of weight[p] * rows[row_at[p]] over the places from begin to end, but no more than
    CHUNK of them, in their order."""
    end = tl.minimum(end, begin + CHUNK)
    d_D = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    total_D = tl.zeros([WIDTH], out.dtype.element_ty)
    for first in range(begin, end, AHEAD):
        # Unrolled, so that AHEAD rows are asked for before the first has come. Past the end 0 is added.
        for k in tl.static_range(AHEAD):
            here = first + k < end
            row = tl.load(row_index + first + k, mask=here, other=0).to(tl.int64)
            w = tl.load(weight + first + k, mask=here, other=0.0)
            total_D += w * tl.load(rows + row * D + d_D, mask=here & (d_D < D), other=0.0)
    tl.store(out + d_D, total_D, mask=d_D < D)


@_program
def first_chunks(
    rows,
    row_index,
    weight,
    start,
    times,
    out,
    D: tl.constexpr,
    WIDTH: tl.constexpr,
    CHUNK: tl.constexpr,
    AHEAD: tl.constexpr,
):
    """Row r of `out`, (R, D), from the first of its places, which are those from times * start[r] to
    times * start[r + 1]."""
    r = tl.program_id(0).to(tl.int64)
    begin, end = tl.load(start + r) * times, tl.load(start + r + 1) * times
    _sum(rows, row_index, weight, begin, end, out + r * D, D, WIDTH, CHUNK, AHEAD)


@triton.jit
def _later(start, times, owner, CHUNK: tl.constexpr):
    """(which of a row's chunks is this program's, where it begins, the row, where the row ends).

    A chunk but for a row's first begins in one block of CHUNK places, and no two begin in the same: the program of the
    block has it. The place at which the block begins belongs to that row, as the chunk before was there already.
    """
    block = tl.program_id(0).to(tl.int64) + 1
    r = tl.load(owner + block * CHUNK // times).to(tl.int64)
    begin, end = tl.load(start + r) * times, tl.load(start + r + 1) * times
    k = block - begin // CHUNK
    return k, begin + k * CHUNK, r, end


@_program
def later_chunks(
    rows,
    row_index,
    weight,
    start,
    times,
    owner,
    out,
    D: tl.constexpr,
    WIDTH: tl.constexpr,
    CHUNK: tl.constexpr,
    AHEAD: tl.constexpr,
):
    """Row e of `out`, (E, D), from the chunk of block e + 1, if one begins there that is not its row's first."""
    k, begin, _, end = _later(start, times, owner, CHUNK)
    if (k > 0) & (begin < end):
        _sum(rows, row_index, weight, begin, end, out + tl.program_id(0).to(tl.int64) * D, D, WIDTH, CHUNK, AHEAD)


@_program
def add_chunks(
    later,
    start,
    times,
    owner,
    out,
    D: tl.constexpr,
    WIDTH: tl.constexpr,
    CHUNK: tl.constexpr,
    AHEAD: tl.constexpr,
):
    """Adds to a row of `out` its other chunks, in their order; done by the program of the first of them."""
    k, begin, r, end = _later(start, times, owner, CHUNK)
    if (k == 1) & (begin < end):
        first = tl.program_id(0).to(tl.int64)
        d_D = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
        total_D = tl.load(out + r * D + d_D, mask=d_D < D)
        for chunk in tl.range(first, first + tl.cdiv(end - begin, CHUNK), loop_unroll_factor=AHEAD):
            total_D += tl.load(later + chunk * D + d_D, mask=d_D < D)
        tl.store(out + r * D + d_D, total_D, mask=d_D < D)
