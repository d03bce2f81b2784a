"""Loops that draw items for pairs, negatives of their own and extra positives: up to a million draws a step.

Negatives are bit-equal to the readable form, `core.randomness.uniforms` and `NegativeSampler.draw`. Single-threaded:
the stream that calls them has a fraction of one core. Letters: P excluded intervals of all users, I those of one user,
G guide entries.

Measured on one core, Gowalla, N = 64, known positives rejected: whole batches take 1.2 us a positive, 2.0 us if every
search in the excluded intervals is binary, and 3.6 us in numpy; with nothing to reject 0.8 us and, in numpy, 1.1 us.
"""

from typing import NamedTuple

import numpy as np
from numba import njit

from distrec.kernels.numba.intrinsics import wide_product

# Philox4x64: multipliers, and the increments of the key after each round.
_M0, _M1 = np.uint64(0xD2E7470EE14C6C93), np.uint64(0xCA5A826395121157)
_W0, _W1 = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBB67AE8584CAA73B)
_ROUNDS = 10
_UNIT = 2.0**-53
LINEAR_SEARCH_UP_TO = 128
"""Up to this many excluded intervals are each compared with all points of a pair, vectorised; more are bisected."""

_compiled = njit(cache=True, nogil=True, error_model="numpy")


class Stream(NamedTuple):
    """A stream of draws, named by arguments of `core.randomness.uniforms`."""

    seed: np.uint64
    purpose: np.uint64
    index: np.uint64
    second_index: np.uint64


class CumulativeMass(NamedTuple):
    """Cumulative mass of the items, prepared for finding the item at a point."""

    total: int
    uniform: bool
    """Every item has mass 1: a point is the item."""
    half_words: bool
    """A draw uses half of a 64-bit word."""
    edges: np.ndarray
    """Cumulative mass before each item, and the total, (V + 1,)."""
    shift: int
    guide_G: np.ndarray
    """Item at each point that is a multiple of 2**shift: the search from there passes one or two items on average."""


class ExcludedIntervals(NamedTuple):
    """Intervals of mass excluded for each user, (P,), in CSR form. Empty without users: nothing is excluded."""

    indptr: np.ndarray
    free_U: np.ndarray
    """Remaining mass of each user; 0: every item is excluded, and draws are from the total mass."""
    start_P: np.ndarray
    """Point on the user's remaining mass at which each interval was removed."""
    removed: np.ndarray
    """Cumulative mass removed before each interval, and in total, (P + 1,)."""


@_compiled
def draw_for_pairs(stream, number_B, user_B, mass, excluded, item_BN):
    """Write negatives of pairs: draws number_B[b] * N .. number_B[b] * N + N - 1 of the stream belong to pair b.

    A pair's draws are searched side by side, without branches, so that comparisons are neither dependent nor predicted.
    One draw after the other takes six times as long. Raises IndexError for a user outside the range.
    """
    n = item_BN.shape[1]
    word_N, point_N = np.empty(n + 6, np.uint64), np.empty(n, excluded.start_P.dtype)
    for b in range(len(item_BN)):
        free, start, stop = _remaining_mass(mass, excluded, user_B[b])
        first = np.uint64(number_B[b]) * np.uint64(n)
        if mass.uniform and stop == start:
            _draw_points(stream, first, mass.half_words, free, word_N, item_BN[b])
            continue
        _draw_points(stream, first, mass.half_words, free, word_N, point_N)
        if stop > start:
            _skip_excluded(point_N, excluded.start_P[start:stop], excluded.removed[start : stop + 1], mass.uniform)
        _find_items(mass, point_N, item_BN[b])


@_compiled
def draw_positives(stream, ordinal_B, user_B, indptr, indices, item_BM):
    """Write items drawn from those of each pair's user, uniformly and with replacement.

    Draws ordinal_B[b] * M .. ordinal_B[b] * M + M - 1 of the stream belong to pair b. Raises IndexError for a user
    outside the range or without items.
    """
    m = item_BM.shape[1]
    word_M, rank_M = np.empty(m + 6, np.uint64), np.empty(m, np.int64)
    for b in range(len(item_BM)):
        user = user_B[b]
        if user < 0 or user >= len(indptr) - 1 or indptr[user] == indptr[user + 1]:
            raise IndexError("a user outside the range or without items")
        start, stop = indptr[user], indptr[user + 1]
        _draw_points(stream, np.uint64(ordinal_B[b]) * np.uint64(m), False, stop - start, word_M, rank_M)
        for k in range(m):
            item_BM[b, k] = indices[start + rank_M[k]]


@_compiled
def draw_mask(stream, ordinal_B, threshold, factor, mask_BD):
    """Write 0 where a 32-bit draw is below the threshold, else the factor; pair b has words ordinal_B[b] * ceil(D / 2)
    and on of the stream, the lower half of each first."""
    width = mask_BD.shape[1]
    words = (width + 1) // 2
    word_N = np.empty(words + 6, np.uint64)
    for b in range(len(mask_BD)):
        skipped = 2 * _philox_words(stream, np.uint64(ordinal_B[b]) * np.uint64(words), words, word_N)
        half_N = word_N.view(np.uint32)[skipped:]
        for k in range(width):
            mask_BD[b, k] = np.float32(0) if half_N[k] < threshold else factor


@njit
def _draw_points(stream, first, half_words, free, word_N, point_N):
    """Write the points in [0, free) of the draws from `first` on."""
    n = len(point_N)
    if half_words:
        odd = np.int64(first & np.uint64(1))
        skipped = 2 * _philox_words(stream, first >> np.uint64(1), (odd + n + 1) // 2, word_N) + odd
        half_N = word_N.view(np.uint32)[skipped:]
        factor = np.uint64(np.uint32(free))  # so that the compiler knows it has 32 bits
        for k in range(n):
            point_N[k] = (np.uint64(half_N[k]) * factor) >> np.uint64(32)
        return
    word_N = word_N[_philox_words(stream, first, n, word_N) :]
    for k in range(n):  # signed, as converting unsigned integers to floats takes longer
        point_N[k] = np.int64(np.float64(np.int64(word_N[k] >> np.uint64(11))) * _UNIT * free)


@njit
def _remaining_mass(mass, excluded, user):
    """Return (mass that remains for a user, start and stop of its excluded intervals)."""
    if len(excluded.free_U) == 0:
        return mass.total, 0, 0
    if user < 0 or user >= len(excluded.free_U):
        raise IndexError("a user outside the range")
    if excluded.free_U[user] == 0:  # every item that can be drawn is known
        return mass.total, 0, 0
    return excluded.free_U[user], excluded.indptr[user], excluded.indptr[user + 1]


@njit
def _philox_words(stream, first, n, word_N):
    """Write words first .. first + n of a stream. Returns how many words precede them: a counter gives four."""
    skipped = np.int64(first & np.uint64(3))
    block = first >> np.uint64(2)
    for k in range(0, skipped + n, 4):
        block += np.uint64(1)  # numpy increments the counter before each block
        a, b, c, d = block, stream.index, stream.second_index, np.uint64(0)
        key, tweak = stream.seed, stream.purpose
        for _ in range(_ROUNDS):
            (high_a, low_a), (high_c, low_c) = wide_product(_M0, a), wide_product(_M1, c)
            a, b, c, d = high_c ^ b ^ key, low_c, high_a ^ d ^ tweak, low_a
            key, tweak = key + _W0, tweak + _W1
        word_N[k], word_N[k + 1], word_N[k + 2], word_N[k + 3] = a, b, c, d
    return skipped


@njit
def _skip_excluded(point_N, start_I, removed_I, uniform):
    """Shift points from a user's remaining mass to the total mass. `removed_I` has one more entry, the total."""
    before_N = np.zeros_like(point_N)
    if len(start_I) <= LINEAR_SEARCH_UP_TO:
        _linear_search(point_N, start_I, before_N)
    else:
        _binary_search(point_N, start_I, before_N)
    for k in range(len(point_N)):
        point_N[k] += before_N[k] if uniform else removed_I[before_N[k]] - removed_I[0]


@njit
def _linear_search(point_N, start_I, before_N):
    """Count the intervals that start at or before each point. Four at a time, which loads and stores counts less."""
    whole = len(start_I) // 4 * 4
    for j in range(0, whole, 4):
        s0, s1, s2, s3 = start_I[j], start_I[j + 1], start_I[j + 2], start_I[j + 3]
        for k in range(len(point_N)):
            point = point_N[k]
            before_N[k] += (s0 <= point) + (s1 <= point) + (s2 <= point) + (s3 <= point)
    for j in range(whole, len(start_I)):
        for k in range(len(point_N)):
            before_N[k] += start_I[j] <= point_N[k]


@njit
def _binary_search(point_N, start_I, before_N):
    """Count the same by bisection, without branches. There must be at least one interval."""
    length = len(start_I)
    while length > 1:
        half = length >> 1
        for k in range(len(point_N)):
            before_N[k] += half if start_I[np.uint64(before_N[k] + half - 1)] <= point_N[k] else 0
        length -= half
    for k in range(len(point_N)):
        before_N[k] += start_I[before_N[k]] <= point_N[k]


@njit
def _find_items(mass, point_N, item_N):
    """Write the item at each point."""
    edges, guide_G = mass.edges, mass.guide_G
    for k in range(len(point_N)):
        item = point_N[k]
        if not mass.uniform:
            item = guide_G[point_N[k] >> mass.shift]
            while edges[item + 1] <= point_N[k]:
                item += 1
        item_N[k] = item
