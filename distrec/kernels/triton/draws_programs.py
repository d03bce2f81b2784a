"""Triton programs that draw items for pairs on a GPU: the draws of `numba/draws.py`, bit for bit.

Philox4x64-10 words; points of the cumulative mass from half words (32 bits) or from 53 of a word's 64 bits; exclusion
of a user's positives by a search for the intervals removed before a point; inversion by a guide table.

`state` of `sampling.device_draws.DeviceDraws` is what changes from step to step, so that launches can be replayed.
Letters: B pairs, N draws of a block, C pairs of all steps that are on the device, P positives of all users.
"""

import triton
import triton.language as tl

STEP, EPOCH, FIRST = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)  # of `state`
SEED, TOTAL, SHIFT, GUIDE_STEPS, SEARCH_STEPS = (tl.constexpr(k) for k in range(5))  # of `constants`
_M0, _M1 = tl.constexpr(0xD2E7470EE14C6C93), tl.constexpr(0xCA5A826395121157)  # multipliers of Philox4x64
_W0, _W1 = tl.constexpr(0x9E3779B97F4A7C15), tl.constexpr(0xBB67AE8584CAA73B)  # increments of its key
_RESOLUTION = tl.constexpr(2.0**-53)

_program = triton.jit(do_not_specialize=["pairs", "n", "m"])


@triton.jit
def _philox_words(block, index, second_index, seed, purpose):
    """Return the four words of block number `block` of a stream of `core.randomness`; all arguments are uint64."""
    a = block + tl.full([], 1, tl.uint64)  # numpy increments its counter before it uses it
    zero = a ^ a
    b, c, d = zero + index, zero + second_index, zero
    key, second_key = zero + seed, zero + purpose
    m0, m1 = tl.full([], _M0, tl.uint64), tl.full([], _M1, tl.uint64)
    w0, w1 = tl.full([], _W0, tl.uint64), tl.full([], _W1, tl.uint64)
    for _ in tl.static_range(10):
        high_a, low_a = tl.umulhi(zero + m0, a), a * m0
        high_c, low_c = tl.umulhi(zero + m1, c), c * m1
        a, b, c, d = high_c ^ b ^ key, low_c, high_a ^ d ^ second_key, low_a
        key += w0
        second_key += w1
    return a, b, c, d


@triton.jit
def _half_point(half, free):
    """Return the point of uint32 half words in a mass `free`, below 2**32, as int32."""
    return tl.umulhi(half, (half ^ half) + free.to(tl.uint32)).to(tl.int32)


@triton.jit
def _word_point(word, free):
    """Return the point of words in a mass `free`: 53 bits as a float64 in [0, 1), times `free`, truncated to int64."""
    uniform = (word >> 11).to(tl.int64).to(tl.float64) * _RESOLUTION
    return (uniform * free.to(tl.float64)).to(tl.int64)


@triton.jit
def _stream(state, constants, SECOND: tl.constexpr, PURPOSE: tl.constexpr):
    """Return (epoch, second index, seed, purpose) of a stream of this epoch, uint64."""
    epoch, seed = tl.load(state + EPOCH).to(tl.uint64), tl.load(constants + SEED).to(tl.uint64)
    return epoch, tl.full([], SECOND, tl.uint64), seed, tl.full([], PURPOSE, tl.uint64)


@triton.jit
def _block_points(
    first,
    start,
    free,
    state,
    constants,
    SECOND: tl.constexpr,
    PURPOSE: tl.constexpr,
    HALF_WORDS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Return (indices, points in a mass `free`) of BLOCK consecutive draws of a stream.

    The block begins `start` draws, a multiple of 8, after the last multiple of 8 that is not above draw `first`;
    indices count from `first` and so may be negative. Points are int32 for half words, else int64.
    """
    eight = tl.full([], 7, tl.uint64)
    index_N = tl.arange(0, BLOCK) + start - (first & eight).to(tl.int32)
    epoch, second_index, seed, purpose = _stream(state, constants, SECOND, PURPOSE)
    if HALF_WORDS:
        block = (first >> 3) + (start >> 3) + tl.arange(0, BLOCK // 8).to(tl.uint64)
    else:
        block = ((first >> 3) << 1) + (start >> 2) + tl.arange(0, BLOCK // 4).to(tl.uint64)
    a, b, c, d = _philox_words(block, epoch, second_index, seed, purpose)
    words = tl.join(tl.join(a, c), tl.join(b, d))  # a, b, c, d side by side
    if HALF_WORDS:
        low, high = (words & 0xFFFFFFFF).to(tl.uint32), (words >> 32).to(tl.uint32)
        point_N = _half_point(tl.reshape(tl.join(low, high), (BLOCK,)), free)
    else:
        point_N = _word_point(tl.reshape(words, (BLOCK,)), free)
    return index_N, point_N


@triton.jit
def _single_points(draw, free, state, constants, PURPOSE: tl.constexpr, HALF_WORDS: tl.constexpr):
    """Return the points of arbitrary draws (uint64), each with a Philox block of its own."""
    epoch, second_index, seed, purpose = _stream(state, constants, 0, PURPOSE)
    word = draw >> 1 if HALF_WORDS else draw
    a, b, c, d = _philox_words(word >> 2, epoch, second_index, seed, purpose)
    lane = (word & 3).to(tl.int32)
    chosen = tl.where(lane < 2, tl.where(lane == 0, a, b), tl.where(lane == 2, c, d))
    if HALF_WORDS:
        half = tl.where((draw & 1).to(tl.int32) == 1, chosen >> 32, chosen & 0xFFFFFFFF).to(tl.uint32)
        return _half_point(half, free)
    else:
        return _word_point(chosen, free)


@triton.jit
def _free_mass(user, masses, EXCLUDE: tl.constexpr):
    """Return (mass that users draw from, index of their first excluded interval, number of intervals), int64."""
    total = tl.load(masses.constants + TOTAL)
    if EXCLUDE:
        free = tl.load(masses.free_U + user)
        start = tl.load(masses.indptr + user)
        saturated = free == 0  # every item that can be drawn is excluded: draw from the whole mass
        length = tl.where(saturated, 0, tl.load(masses.indptr + user + 1) - start)
        free = tl.where(saturated, total, free)
    else:
        free = total
        start = total * 0
        length = start
    return free, start, length


@triton.jit
def _search_steps(length):
    """Return the steps of a binary search in `length` elements, down to one (a scalar)."""
    steps, left = 0, length
    while left > 1:
        left -= left >> 1
        steps += 1
    return steps


@triton.jit
def _count_up_to(value, keys, start, length, steps):
    """Return how many of the ascending keys[start:start + length] are <= value, by binary search, int32.

    `start` and `length` are scalars, or have the shape of `value`.
    """
    found = (value ^ value).to(tl.int32)
    left = length
    for _ in range(steps):
        half = left >> 1
        probed = half > 0
        key = tl.load(keys + start + found + half - 1, mask=probed, other=0)
        found += tl.where(probed & (key <= value), half, 0).to(tl.int32)
        left -= half
    some = length > 0
    key = tl.load(keys + start + found, mask=some, other=0)
    return found + (some & (key <= value)).to(tl.int32)


@triton.jit
def _skip_excluded(point, start, length, steps, masses, UNIFORM: tl.constexpr):
    """Shift points by the mass removed before them or at them."""
    before = _count_up_to(point, masses.start_P, start, length, steps)
    if UNIFORM:
        return point + before
    else:
        return point + tl.load(masses.removed + start + before) - tl.load(masses.removed + start)


@triton.jit
def _find_items(point, masses, UNIFORM: tl.constexpr):
    """Return the items at points of the cumulative mass, int32: binary search between two guide entries."""
    if UNIFORM:
        return point.to(tl.int32)
    else:
        entry = point >> tl.load(masses.constants + SHIFT)
        low, high = tl.load(masses.guide + entry), tl.load(masses.guide + entry + 1)
        for _ in range(tl.load(masses.constants + GUIDE_STEPS)):
            middle = (low + high) >> 1
            beyond = tl.load(masses.edges + middle + 1) <= point
            low, high = tl.where(beyond, middle + 1, low), tl.where(beyond, high, middle)
        return low


@_program
def gather_pairs(state, start_S, user_C, item_C, ordinal_C, user_B, item_B, ordinal_B, pairs, BLOCK: tl.constexpr):
    """Copy the pairs of the present step from those of all steps on the device."""
    start = tl.load(start_S + tl.load(state + STEP))
    b_B = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    here_B = b_B < pairs
    tl.store(user_B + b_B, tl.load(user_C + start + b_B, mask=here_B, other=0), mask=here_B)
    tl.store(item_B + b_B, tl.load(item_C + start + b_B, mask=here_B, other=0), mask=here_B)
    tl.store(ordinal_B + b_B, tl.load(ordinal_C + start + b_B, mask=here_B, other=0), mask=here_B)


@_program
def draw_for_pairs(
    user_B,
    ordinal_B,
    out_BN,
    n,
    state,
    masses,
    PURPOSE: tl.constexpr,
    UNIFORM: tl.constexpr,
    HALF_WORDS: tl.constexpr,
    EXCLUDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write the n negatives of one pair, draws ordinal * n .. ordinal * n + n - 1 of the stream."""
    b = tl.program_id(0)
    free, start, length = _free_mass(tl.load(user_B + b), masses, EXCLUDE)
    steps = _search_steps(length)
    first = tl.load(ordinal_B + b).to(tl.uint64) * n.to(tl.uint64)
    out_N = out_BN + b.to(tl.int64) * n
    for chunk in range(0, n + (first & 7).to(tl.int32), BLOCK):
        index_N, point_N = _block_points(first, chunk, free, state, masses.constants, 0, PURPOSE, HALF_WORDS, BLOCK)
        if EXCLUDE:
            point_N = _skip_excluded(point_N, start, length, steps, masses, UNIFORM)
        here_N = (index_N >= 0) & (index_N < n)
        tl.store(out_N + index_N, _find_items(point_N, masses, UNIFORM), mask=here_N)


@_program
def draw_each(
    user_B,
    ordinal_B,
    out_BN,
    pairs,
    n,
    state,
    masses,
    PURPOSE: tl.constexpr,
    UNIFORM: tl.constexpr,
    HALF_WORDS: tl.constexpr,
    EXCLUDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write the same for few negatives of each pair: BLOCK draws of some pairs, one Philox block each."""
    k_N = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    here_N = k_N < pairs * n
    b_N = k_N // n
    user_N = tl.load(user_B + b_N, mask=here_N, other=0)
    ordinal_N = tl.load(ordinal_B + b_N, mask=here_N, other=0)
    free_N, start_N, length_N = _free_mass(user_N, masses, EXCLUDE)
    draw_N = ordinal_N.to(tl.uint64) * n.to(tl.uint64) + (k_N - b_N * n).to(tl.uint64)
    point_N = _single_points(draw_N, free_N, state, masses.constants, PURPOSE, HALF_WORDS)
    if EXCLUDE:
        steps = tl.load(masses.constants + SEARCH_STEPS)
        point_N = _skip_excluded(point_N, start_N, length_N, steps, masses, UNIFORM)
    point_N = tl.where(here_N, point_N, 0)
    tl.store(out_BN + k_N, _find_items(point_N, masses, UNIFORM), mask=here_N)


@_program
def draw_shared(out_N, n, state, masses, PURPOSE: tl.constexpr, UNIFORM: tl.constexpr, BLOCK: tl.constexpr):
    """Write the negatives that a step shares, draws step * n .. step * n + n - 1 of their stream, 53 bits each."""
    step = tl.load(state + FIRST) + tl.load(state + STEP)
    first = step.to(tl.uint64) * n.to(tl.uint64)
    total = tl.load(masses.constants + TOTAL)
    start = tl.program_id(0) * BLOCK
    index_N, point_N = _block_points(first, start, total, state, masses.constants, 1, PURPOSE, False, BLOCK)
    here_N = (index_N >= 0) & (index_N < n)
    tl.store(out_N + index_N, _find_items(point_N, masses, UNIFORM), mask=here_N)


@triton.jit(do_not_specialize=["count"])
def touch(item_N, rows_V, count, BLOCK: tl.constexpr):
    """Write the row number of each item to its place among all rows."""
    k_N = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    here_N = k_N < count
    row_N = tl.load(item_N + k_N, mask=here_N, other=0).to(tl.int64)
    seen_N = tl.load(rows_V + row_N, mask=here_N, other=0)  # a store that is not needed would cost more than this
    tl.store(rows_V + row_N, row_N, mask=here_N & (seen_N < 0))


@_program
def draw_positives(
    user_B, ordinal_B, out_BM, pairs, m, state, constants, indptr, indices, PURPOSE: tl.constexpr, BLOCK: tl.constexpr
):
    """Write m training items of each pair's user, drawn with replacement: BLOCK draws of some pairs."""
    k_N = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    here_N = k_N < pairs * m
    b_N = k_N // m
    user_N = tl.load(user_B + b_N, mask=here_N, other=0)
    ordinal_N = tl.load(ordinal_B + b_N, mask=here_N, other=0)
    start_N = tl.load(indptr + user_N)
    degree_N = tl.load(indptr + user_N + 1) - start_N
    draw_N = ordinal_N.to(tl.uint64) * m.to(tl.uint64) + (k_N - b_N * m).to(tl.uint64)
    rank_N = _single_points(draw_N, degree_N, state, constants, PURPOSE, False)
    tl.store(out_BM + k_N, tl.load(indices + start_N + rank_N, mask=here_N, other=0), mask=here_N)


@_program
def mark_known(user_B, item_N, mask_BN, n, indptr, indices, BLOCK: tl.constexpr):
    """Write for one pair which of the n shared items are training items of its user, 0 or 1."""
    b = tl.program_id(0)
    user = tl.load(user_B + b)
    start = tl.load(indptr + user)
    length = tl.load(indptr + user + 1) - start
    steps = _search_steps(length)
    for chunk in range(0, n, BLOCK):
        k_N = chunk + tl.arange(0, BLOCK)
        here_N = k_N < n
        item = tl.load(item_N + k_N, mask=here_N, other=-1)
        before_N = _count_up_to(item - 1, indices, start, length, steps)
        known_N = tl.load(indices + start + before_N, mask=here_N & (before_N < length), other=-2) == item
        tl.store(mask_BN + b.to(tl.int64) * n + k_N, known_N.to(tl.int8), mask=here_N)
