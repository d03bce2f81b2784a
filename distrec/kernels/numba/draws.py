"""The loops that numba compiles for batches whose pairs have negatives of their own: up to a million draws a step.

They give the digits of a readable form, `seeds.uniforms` and `NegativeSampler.draw`. On one thread: the stream that
calls them has a part of one core.

Measured on one core, Gowalla, N = 64, known positives rejected: whole batches took 3.6 us a positive in numpy and take
1.2 (2.0 if all cuts are searched for); with nothing to reject 1.1 and 0.8.
"""

from typing import NamedTuple

import numpy as np
from numba import njit

from distrec.kernels.numba.intrinsics import wide_product

# Philox4x64: multipliers, and what is added to the key after each round.
_M0, _M1 = np.uint64(0xD2E7470EE14C6C93), np.uint64(0xCA5A826395121157)
_W0, _W1 = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBB67AE8584CAA73B)
_ROUNDS = 10
_UNIT = 2.0**-53
FEW = 128  # cuts: each is compared with all places of a pair, by vectors; with more, places are searched for

_compiled = njit(cache=True, nogil=True, error_model="numpy")


class Stream(NamedTuple):
    """Names a stream of draws, by arguments of `seeds.uniforms`."""

    seed: np.uint64
    purpose: np.uint64
    index: np.uint64
    second_index: np.uint64


class CumulativeMass(NamedTuple):
    """The line on which the items lie one after another, for finding the one at a place."""

    total: int
    even: bool
    """Whether the place is the item."""
    halves: bool
    """Whether half a word of 64 bits is enough for a draw."""
    edges: np.ndarray
    shift: int
    guide_G: np.ndarray
    """The item at each place that is a multiple of 2**shift: from there it is an item's mass or two, on average."""


class ExcludedIntervals(NamedTuple):
    """What is cut out of the line for each user, in arrays of `NegativeSampler`. No users: nothing is."""

    indptr: np.ndarray
    free_U: np.ndarray
    place_P: np.ndarray
    removed: np.ndarray


@_compiled
def draw_for_pairs(stream, number_B, user_B, line, cuts, item_BN):
    """Negatives of pairs: to pair b belong the draws number_B[b] * N .. number_B[b] * N + N - 1 of a stream.

    A pair's draws go through the search side by side: the processor then neither waits for one comparison before the
    next nor guesses how it ends. One draw after the other takes six times as long.
    """
    n = item_BN.shape[1]
    word_N, place_N = np.empty(n + 6, np.uint64), np.empty(n, cuts.place_P.dtype)
    for b in range(len(item_BN)):
        free, start, stop = _uncut(line, cuts, user_B[b])
        first = np.uint64(number_B[b]) * np.uint64(n)
        if line.even and stop == start:
            _places(stream, first, line.halves, free, word_N, item_BN[b])
            continue
        _places(stream, first, line.halves, free, word_N, place_N)
        if stop > start:
            _shift(place_N, cuts.place_P[start:stop], cuts.removed[start : stop + 1], line.even)
        _find_items(line, place_N, item_BN[b])


@njit
def _places(stream, first, halves, free, word_N, place_N):
    """Where on a line of this length the draws from `first` on fall."""
    n = len(place_N)
    if halves:
        odd = np.int64(first & np.uint64(1))
        skipped = 2 * _words(stream, first >> np.uint64(1), (odd + n + 1) // 2, word_N) + odd
        half_N = word_N.view(np.uint32)[skipped:]
        factor = np.uint64(np.uint32(free))  # so that it is known to have 32 bits
        for k in range(n):
            place_N[k] = (np.uint64(half_N[k]) * factor) >> np.uint64(32)
        return
    word_N = word_N[_words(stream, first, n, word_N) :]
    for k in range(n):  # signed, as unsigned numbers take longer to become floats
        place_N[k] = np.int64(np.float64(np.int64(word_N[k] >> np.uint64(11))) * _UNIT * free)


@njit
def _uncut(line, cuts, user):
    """(mass that is left for a user, its cuts: from, to)."""
    if len(cuts.free_U) == 0:
        return line.total, 0, 0
    if user < 0 or user >= len(cuts.free_U):
        raise IndexError("a user outside the range")
    if cuts.free_U[user] == 0:  # every item that can be drawn is known: from the whole line
        return line.total, 0, 0
    return cuts.free_U[user], cuts.indptr[user], cuts.indptr[user + 1]


@njit
def _words(stream, first, n, word_N):
    """The words first .. first + n of a stream, after as many as are returned: a counter gives four at once."""
    skipped = np.int64(first & np.uint64(3))
    block = first >> np.uint64(2)
    for k in range(0, skipped + n, 4):
        block += np.uint64(1)  # numpy's counter too is one ahead of what it gives
        a, b, c, d = block, stream.index, stream.second_index, np.uint64(0)
        key, tweak = stream.seed, stream.purpose
        for _ in range(_ROUNDS):
            (high_a, low_a), (high_c, low_c) = wide_product(_M0, a), wide_product(_M1, c)
            a, b, c, d = high_c ^ b ^ key, low_c, high_a ^ d ^ tweak, low_a
            key, tweak = key + _W0, tweak + _W1
        word_N[k], word_N[k + 1], word_N[k + 2], word_N[k + 3] = a, b, c, d
    return skipped


@njit
def _shift(place_N, cut_K, removed_K, even):
    """Moves each place by what was cut before it. All places share the cuts."""
    before_N = np.zeros_like(place_N)
    if len(cut_K) <= FEW:
        _compare(place_N, cut_K, before_N)
    else:
        _search(place_N, cut_K, before_N)
    for k in range(len(place_N)):
        place_N[k] += before_N[k] if even else removed_K[before_N[k]] - removed_K[0]


@njit
def _compare(place_N, cut_K, before_N):
    """Counts the cuts before each place; one at the place itself is before it. Four at a time: each time all counts are
    fetched and written."""
    whole = len(cut_K) // 4 * 4
    for j in range(0, whole, 4):
        c0, c1, c2, c3 = cut_K[j], cut_K[j + 1], cut_K[j + 2], cut_K[j + 3]
        for k in range(len(place_N)):
            place = place_N[k]
            before_N[k] += (c0 <= place) + (c1 <= place) + (c2 <= place) + (c3 <= place)
    for j in range(whole, len(cut_K)):
        for k in range(len(place_N)):
            before_N[k] += cut_K[j] <= place_N[k]


@njit
def _search(place_N, cut_K, before_N):
    """The same by halving, for many cuts; there must be one."""
    length = len(cut_K)
    while length > 1:
        half = length >> 1
        for k in range(len(place_N)):
            before_N[k] += half if cut_K[np.uint64(before_N[k] + half - 1)] <= place_N[k] else 0
        length -= half
    for k in range(len(place_N)):
        before_N[k] += cut_K[before_N[k]] <= place_N[k]


@njit
def _find_items(line, place_N, item_N):
    """The item at each place."""
    edges, guide_G = line.edges, line.guide_G
    for k in range(len(place_N)):
        item = place_N[k]
        if not line.even:
            item = guide_G[place_N[k] >> line.shift]
            while edges[item + 1] <= place_N[k]:
                item += 1
        item_N[k] = item
