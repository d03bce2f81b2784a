"""Draws of negatives by inversion of integer masses: exact, and without a retry even when known positives are excluded.

Each item i has an integer mass m_i; the items lie one after another on the line [0, sum m). A uniform draw picks a
point and so an item with probability m_i / sum m. To exclude a user's positives, their intervals are cut out of the
line: the draw picks a point of what is left, and the number of cuts before it, found by binary search, says how far
to shift it. All of it is integer arithmetic, so an excluded item cannot come back by rounding, and each draw costs
the same.
"""

from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from distrec.sampling.config import SamplingConfig

if TYPE_CHECKING:  # numba, only where pairs have negatives of their own
    from distrec.kernels.numba.draws import CumulativeMass, ExcludedIntervals, Stream

_KEY_BITS = 62  # user number and mass share one signed 64-bit search key
HALVES_UP_TO = 2**18  # items of one mass: a draw of 32 bits is off by 2^-32, less than 1 / 16,000 of an item's chance


def item_masses(config: SamplingConfig, item_degrees_V: np.ndarray, users: int) -> np.ndarray:
    """Integer masses of the items, (V,) int64. `users` bounds their sum, so that (user, mass) fits one search key."""
    if config.distribution == "uniform":
        return np.ones(len(item_degrees_V), np.int64)
    # Relative to the most popular item: a large exponent must not overflow.
    relative = item_degrees_V / max(1, item_degrees_V.max(initial=0))
    beta = 1.0 if config.distribution == "in_batch" else config.beta
    weights = np.where(item_degrees_V > 0, np.power(relative, beta), 0.0)
    if config.distribution == "mixture":
        popular = weights / max(weights.sum(), np.finfo(float).tiny)
        weights = config.uniform_share / len(weights) + (1 - config.uniform_share) * popular
    total = 2.0 ** min(52, _KEY_BITS - max(1, users).bit_length())
    masses = np.floor(weights / max(weights.sum(), np.finfo(float).tiny) * (total - len(weights))).astype(np.int64)
    return np.where(weights > 0, np.maximum(masses, 1), 0)  # rounding must not make an item impossible


class NegativeSampler:
    """Turns uniform numbers into items, for the users whose positives it was given.

    Args:
        masses_V: integer masses of the items, int64. positives: (offsets, items): the training items of user k are
        `items[offsets[k]:offsets[k + 1]]`, ascending. None draws
            without excluding anything.
    """

    def __init__(self, masses_V: np.ndarray, positives: tuple[np.ndarray, np.ndarray] | None) -> None:
        self.masses_V = masses_V
        self.edges = np.concatenate([[0], np.cumsum(masses_V)])
        self.total = int(self.edges[-1])
        self.even = bool((masses_V == 1).all())  # then the place on the line is the item
        self.halves = self.even and self.total <= HALVES_UP_TO
        self.indptr: np.ndarray | None = None
        if positives is not None:
            self._cut(*positives)

    def _cut(self, indptr: np.ndarray, items: np.ndarray) -> None:
        """Precomputes where each user's cuts lie on the line that is left, and how much was cut by each of them."""
        removed = np.concatenate([[0], np.cumsum(self.masses_V[items])])
        user = np.repeat(np.arange(len(indptr) - 1), np.diff(indptr))
        before = removed[:-1] - removed[indptr[user]]  # mass cut from this user's line before each of its positives
        self.free = self.total - (removed[indptr[1:]] - removed[indptr[:-1]])
        # To these users every item that can be drawn is known. They draw from the whole line; the batch masks it.
        self.saturated = self.free == 0
        place_P = np.where(self.saturated[user], self.total, self.edges[items] - before)
        self.place_P = place_P.astype(np.int32 if self.total < 2**31 else np.int64)
        self.indptr, self.removed = indptr, removed

    @cached_property
    def _keys(self) -> np.ndarray:
        """User and place in one number, ascending: users in order, places in order within a user."""
        user = np.repeat(np.arange(len(self.indptr) - 1), np.diff(self.indptr))
        return user * (self.total + 1) + self.place_P

    def draw(self, uniforms: np.ndarray, user: np.ndarray | None) -> np.ndarray:
        """Items for `uniforms` (any shape) in [0, 1); `user` broadcasts against it, in the numbering of `positives`.

        Returns int32 items of that shape. `user` is None where nothing is excluded.
        """
        if self.indptr is None or user is None:
            return self._item_at((uniforms * self.total).astype(np.int64))
        user = user.astype(np.int64)  # a search key needs more than 32 bits
        whole = self.saturated[user]
        place = (uniforms * np.where(whole, self.total, self.free[user])).astype(np.int64)
        cuts = np.searchsorted(self._keys, user * (self.total + 1) + place, side="right")
        first = self.indptr[user]
        shift = np.where(whole, 0, self.removed[cuts] - self.removed[first])
        return self._item_at(place + shift)

    def draw_for_pairs(self, stream: "Stream", number_B: np.ndarray, user_B: np.ndarray, n: int) -> np.ndarray:
        """Items (B, n) for the draws number * n .. number * n + n - 1 of a stream, of each pair, to its user.

        The same as `draw` from `seeds.uniforms` (of halves where `self.halves`), compiled.
        """
        from distrec.kernels.numba import draws as loops

        item_BN = np.empty((len(number_B), n), np.int32)
        loops.draw_for_pairs(stream, number_B, user_B, self._line, self._cuts, item_BN)
        return item_BN

    @cached_property
    def _line(self) -> "CumulativeMass":
        from distrec.kernels.numba.draws import CumulativeMass

        items = len(self.masses_V)
        shift = max(0, self.total.bit_length() - (2 * items).bit_length())  # two to four marks for each item
        marks = np.arange((self.total >> shift) + 1, dtype=np.int64) << shift
        return CumulativeMass(self.total, self.even, self.halves, self.edges, shift, self._item_at(marks))

    @cached_property
    def _cuts(self) -> "ExcludedIntervals":
        from distrec.kernels.numba.draws import ExcludedIntervals

        if self.indptr is None:
            nothing = np.zeros(0, np.int64)
            return ExcludedIntervals(nothing, nothing, nothing, np.zeros(1, np.int64))
        return ExcludedIntervals(self.indptr, self.free, self.place_P, self.removed)

    def _item_at(self, place: np.ndarray) -> np.ndarray:
        if self.even:
            return place.astype(np.int32)
        return (np.searchsorted(self.edges, place, side="right") - 1).astype(np.int32)

    def log_q(self, items: np.ndarray, user: np.ndarray | None) -> np.ndarray:
        """log of the probability with which `draw` gives each of `items` (to that user), float32."""
        log_total = np.log(self.total)
        if self.indptr is not None and user is not None:
            log_total = self._log_free_U[user]
        return (self._log_masses_V[items] - log_total).astype(np.float32)

    @cached_property
    def _log_masses_V(self) -> np.ndarray:
        with np.errstate(divide="ignore"):  # items that are never drawn
            return np.log(self.masses_V)

    @cached_property
    def _log_free_U(self) -> np.ndarray:
        """Of the mass that each user draws from."""
        return np.log(np.where(self.saturated, self.total, self.free))
