"""Negatives drawn on the device, with the bits of `NegativeSampler` and `numpy.random.Philox`.

Device functions of Triton: Philox4x64-10 words; points of the cumulative mass from half words (32 bits) or from 53 of a
word's 64 bits; exclusion of a user's positives by a binary search for the intervals removed before a point; inversion
by a guide table.

Shape suffixes: B pairs of a batch, N negatives of a pair, U users, P positives of all users; in device functions N is
any block of draws.
"""
# ruff: noqa: ANN001, ANN201  (Triton infers the types of what it compiles)

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import triton
import triton.language as tl

from distrec.core.randomness import Purpose
from distrec.sampling.negatives import NegativeSampler

# Fields of the int64 array `constants` of a sampler, and of the int64 array `state` of a run.
SEED, PURPOSE, TOTAL, SHIFT, GUIDE_STEPS, SEARCH_STEPS, CONSTANTS = range(7)
STEP, EPOCH, TIME, TOUCHED, COUNT, STATE = range(6)  # TIME: steps of all epochs, TOUCHED: rows, COUNT: pairs of a step

_SEED, _PURPOSE, _TOTAL = tl.constexpr(SEED), tl.constexpr(PURPOSE), tl.constexpr(TOTAL)
_SHIFT, _GUIDE_STEPS, _SEARCH_STEPS = tl.constexpr(SHIFT), tl.constexpr(GUIDE_STEPS), tl.constexpr(SEARCH_STEPS)
_STEP, _EPOCH, _TIME = tl.constexpr(STEP), tl.constexpr(EPOCH), tl.constexpr(TIME)
_M0, _M1 = tl.constexpr(0xD2E7470EE14C6C93), tl.constexpr(0xCA5A826395121157)  # multipliers of Philox4x64
_W0, _W1 = tl.constexpr(0x9E3779B97F4A7C15), tl.constexpr(0xBB67AE8584CAA73B)  # increments of its key
_RESOLUTION = tl.constexpr(2.0**-53)


class Masses(NamedTuple):
    """The arrays of a `NegativeSampler` on the device, one argument of a program."""

    constants: torch.Tensor
    indptr: torch.Tensor
    free_U: torch.Tensor
    start_P: torch.Tensor
    removed: torch.Tensor
    edges: torch.Tensor
    guide: torch.Tensor


@dataclass(frozen=True)
class DeviceSampler:
    """A `NegativeSampler` on the device. Only `options` are known when programs are compiled."""

    masses: Masses
    uniform: bool
    half_words: bool
    excludes: bool

    @property
    def options(self) -> dict[str, bool]:
        """Compile-time options of a program that draws for pairs."""
        return {"UNIFORM": self.uniform, "HALF_WORDS": self.half_words, "EXCLUDE": self.excludes}


def to_device(sampler: NegativeSampler, seed: int, device: str, half_words: bool | None = None) -> DeviceSampler:
    """Copy a sampler to a device. `half_words` overrides the sampler's choice, to measure it."""
    items, total, edges = len(sampler.masses_V), sampler.total, sampler.edges
    shift = max(0, total.bit_length() - (2 * items).bit_length())
    points = np.arange((total >> shift) + 1, dtype=np.int64) << shift
    guide = np.minimum(np.searchsorted(edges, points, side="right") - 1, items - 1)
    guide = np.append(guide, items - 1).astype(np.int32)  # items between points k and k + 1: guide[k] .. guide[k + 1]
    constants = np.zeros(CONSTANTS, np.int64)
    constants[SEED] = np.array([seed & (2**64 - 1)], np.uint64).view(np.int64)[0]
    constants[[PURPOSE, TOTAL, SHIFT]] = int(Purpose.NEGATIVES), total, shift
    constants[GUIDE_STEPS] = int(np.diff(guide).max(initial=0)).bit_length()
    constants[SEARCH_STEPS] = int(np.diff(sampler.indptr).max(initial=0)).bit_length()
    free_U, start_P = (np.append(a, a.dtype.type(0)) for a in (sampler.free_U, sampler.start_P))  # never empty
    arrays = (constants, sampler.indptr.astype(np.int64), free_U, start_P, sampler.removed, edges, guide)
    masses = Masses(*(torch.from_numpy(a).to(device) for a in arrays))
    half_words = sampler.half_words if half_words is None else half_words
    return DeviceSampler(masses, sampler.uniform, half_words, sampler.excludes)


def draw_shape(negatives: int, half_words: bool) -> int:
    """Return the draws of a block for a program that draws one pair's negatives: one Philox block a thread."""
    return min(128 * (8 if half_words else 4), max(32, triton.next_power_of_2(negatives)))


@triton.jit
def philox_words(block, index, second_index, seed, purpose):
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
def half_point(half, free):
    """Return the point of uint32 half words in a mass `free`, below 2**32, as int32."""
    return tl.umulhi(half, (half ^ half) + free.to(tl.uint32)).to(tl.int32)


@triton.jit
def word_point(word, free):
    """Return the point of words in a mass `free`: 53 bits as a float64 in [0, 1), times `free`, truncated to int64."""
    uniform = (word >> 11).to(tl.int64).to(tl.float64) * _RESOLUTION
    return (uniform * free.to(tl.float64)).to(tl.int64)


@triton.jit
def block_points(first, start, free, epoch, second_index, constants, HALF_WORDS: tl.constexpr, BLOCK: tl.constexpr):
    """Return (indices, points in a mass `free`) of BLOCK consecutive draws of a stream.

    The block begins `start` draws, a multiple of 8, after the last multiple of 8 that is not above draw `first`;
    indices count from `first` and so may be negative. Points are int32 for half words, else int64.
    """
    eight = tl.full([], 7, tl.uint64)
    index_N = tl.arange(0, BLOCK) + start - (first & eight).to(tl.int32)
    seed, purpose = tl.load(constants + _SEED).to(tl.uint64), tl.load(constants + _PURPOSE).to(tl.uint64)
    if HALF_WORDS:
        block = (first >> 3) + (start >> 3) + tl.arange(0, BLOCK // 8).to(tl.uint64)
    else:
        block = ((first >> 3) << 1) + (start >> 2) + tl.arange(0, BLOCK // 4).to(tl.uint64)
    a, b, c, d = philox_words(block, epoch, second_index, seed, purpose)
    words = tl.join(tl.join(a, c), tl.join(b, d))  # a, b, c, d side by side
    if HALF_WORDS:
        low, high = (words & 0xFFFFFFFF).to(tl.uint32), (words >> 32).to(tl.uint32)
        point_N = half_point(tl.reshape(tl.join(low, high), (BLOCK,)), free)
    else:
        point_N = word_point(tl.reshape(words, (BLOCK,)), free)
    return index_N, point_N


@triton.jit
def single_points(draw, free, epoch, constants, HALF_WORDS: tl.constexpr):
    """Return the points of arbitrary draws (uint64), each with a Philox block of its own."""
    seed, purpose = tl.load(constants + _SEED).to(tl.uint64), tl.load(constants + _PURPOSE).to(tl.uint64)
    word = draw >> 1 if HALF_WORDS else draw
    a, b, c, d = philox_words(word >> 2, epoch, tl.full([], 0, tl.uint64), seed, purpose)
    lane = (word & 3).to(tl.int32)
    chosen = tl.where(lane < 2, tl.where(lane == 0, a, b), tl.where(lane == 2, c, d))
    if HALF_WORDS:
        half = tl.where((draw & 1).to(tl.int32) == 1, chosen >> 32, chosen & 0xFFFFFFFF).to(tl.uint32)
        return half_point(half, free)
    else:
        return word_point(chosen, free)


@triton.jit
def free_mass(user, masses, EXCLUDE: tl.constexpr):
    """Return (mass that users draw from, index of their first excluded interval, number of intervals), int64."""
    total = tl.load(masses.constants + _TOTAL)
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
def search_steps(length):
    """Return the steps of a binary search in `length` elements, down to one (a scalar)."""
    steps, left = 0, length
    while left > 1:
        left -= left >> 1
        steps += 1
    return steps


@triton.jit
def count_up_to(value, keys, start, length, steps):
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
def skip_excluded(point, start, length, steps, masses, UNIFORM: tl.constexpr):
    """Shift points by the mass removed before them or at them."""
    before = count_up_to(point, masses.start_P, start, length, steps)
    if UNIFORM:
        return point + before
    else:
        return point + tl.load(masses.removed + start + before) - tl.load(masses.removed + start)


@triton.jit
def find_items(point, masses, UNIFORM: tl.constexpr):
    """Return the items at points of the cumulative mass, int32: binary search between two guide entries."""
    if UNIFORM:
        return point.to(tl.int32)
    else:
        entry = point >> tl.load(masses.constants + _SHIFT)
        low, high = tl.load(masses.guide + entry), tl.load(masses.guide + entry + 1)
        for _ in range(tl.load(masses.constants + _GUIDE_STEPS)):
            middle = (low + high) >> 1
            beyond = tl.load(masses.edges + middle + 1) <= point
            low, high = tl.where(beyond, middle + 1, low), tl.where(beyond, high, middle)
        return low


@triton.jit
def draw_for_pair(
    user,
    ordinal,
    n,
    item_N,
    touched_V,
    state,
    masses,
    UNIFORM: tl.constexpr,
    HALF_WORDS: tl.constexpr,
    EXCLUDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write a pair's n negatives, draws ordinal * n .. ordinal * n + n - 1, and mark them as touched by this step."""
    free, start, length = free_mass(user, masses, EXCLUDE)
    steps = search_steps(length)
    first = ordinal.to(tl.uint64) * n.to(tl.uint64)
    epoch, second_index = tl.load(state + _EPOCH).to(tl.uint64), tl.full([], 0, tl.uint64)
    stamp = (tl.load(state + _TIME) + 1).to(tl.int32)
    for chunk in range(0, n + (first & 7).to(tl.int32), BLOCK):
        index_N, point_N = block_points(first, chunk, free, epoch, second_index, masses.constants, HALF_WORDS, BLOCK)
        if EXCLUDE:
            point_N = skip_excluded(point_N, start, length, steps, masses, UNIFORM)
        drawn_N = find_items(point_N, masses, UNIFORM)
        here_N = (index_N >= 0) & (index_N < n)
        tl.store(item_N + index_N, drawn_N, mask=here_N)
        seen_N = tl.load(touched_V + drawn_N, mask=here_N, other=0)
        tl.store(touched_V + drawn_N, (seen_N ^ seen_N) + stamp, mask=here_N & (seen_N != stamp))


@triton.jit
def draw_one_each(
    user_B,
    ordinal_B,
    here_B,
    state,
    masses,
    UNIFORM: tl.constexpr,
    HALF_WORDS: tl.constexpr,
    EXCLUDE: tl.constexpr,
):
    """Return one negative for each pair of a block, (B,) int32: draw `ordinal` of the stream."""
    free_B, start_B, length_B = free_mass(user_B, masses, EXCLUDE)
    epoch = tl.load(state + _EPOCH).to(tl.uint64)
    point_B = single_points(ordinal_B.to(tl.uint64), free_B, epoch, masses.constants, HALF_WORDS)
    if EXCLUDE:
        steps = tl.load(masses.constants + _SEARCH_STEPS)
        point_B = skip_excluded(point_B, start_B, length_B, steps, masses, UNIFORM)
    return tl.where(here_B, find_items(point_B, masses, UNIFORM), 0)


@triton.jit(do_not_specialize=["n"])
def draw_shared(item_N, touched_V, state, n, masses, UNIFORM: tl.constexpr, BLOCK: tl.constexpr):
    """Draw the negatives that a step shares, draws step * n .. step * n + n - 1 of their stream, 53 bits each."""
    first = tl.load(state + _STEP).to(tl.uint64) * n.to(tl.uint64)
    epoch, second_index = tl.load(state + _EPOCH).to(tl.uint64), tl.full([], 1, tl.uint64)
    total = tl.load(masses.constants + _TOTAL)
    start = tl.program_id(0) * BLOCK
    index_N, point_N = block_points(first, start, total, epoch, second_index, masses.constants, False, BLOCK)
    drawn_N = find_items(point_N, masses, UNIFORM)
    here_N = (index_N >= 0) & (index_N < n)
    tl.store(item_N + index_N, drawn_N, mask=here_N)
    stamp = (tl.load(state + _TIME) + 1).to(tl.int32)
    tl.store(touched_V + drawn_N, (drawn_N ^ drawn_N) + stamp, mask=here_N)
