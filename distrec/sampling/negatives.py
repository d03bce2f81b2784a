"""Negative sampling by inversion of integer masses: exact, and without rejection also where positives are excluded.

Each item i has an integer mass m_i and occupies an interval of the cumulative mass [0, sum m). A uniform draw selects a
point, and so an item with probability m_i / sum m. To exclude a user's positives, their intervals are removed: the draw
selects a point of the remaining mass, and a binary search for the number of intervals removed before it determines the
offset to add. Integer arithmetic throughout, so that an excluded item cannot result from rounding; all draws cost the
same.

P: intervals excluded for all users, one for each positive; U: users.
"""

from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from distrec.sampling.config import SamplingConfig

if TYPE_CHECKING:  # numba, which is needed only where pairs have their own negatives
    from distrec.kernels.numba.draws import CumulativeMass, ExcludedIntervals, Stream

_KEY_BITS = 62  # a user and a point of the mass share one signed 64-bit search key
HALF_WORDS_UP_TO = 2**18
"""Items of mass 1 up to which draws have 32 bits: their error, 2^-32, is less than 1 / 16,000 of an item's chance."""


def item_masses(config: SamplingConfig, item_degrees_V: np.ndarray, users: int) -> np.ndarray:
    """Return integer masses of the items, (V,) int64, whose sum and `users` fit one search key together."""
    if config.distribution == "uniform":
        return np.ones(len(item_degrees_V), np.int64)
    # Relative to the most popular item, so that a large exponent does not overflow.
    relative = item_degrees_V / max(1, item_degrees_V.max(initial=0))
    beta = 1.0 if config.distribution == "in_batch" else config.beta
    weights = np.where(item_degrees_V > 0, np.power(relative, beta), 0.0)
    if config.distribution == "mixture":
        popular = weights / max(weights.sum(), np.finfo(float).tiny)
        weights = config.uniform_share / len(weights) + (1 - config.uniform_share) * popular
    total = 2.0 ** min(52, _KEY_BITS - max(1, users).bit_length())
    masses = np.floor(weights / max(weights.sum(), np.finfo(float).tiny) * (total - len(weights))).astype(np.int64)
    return np.where(weights > 0, np.maximum(masses, 1), 0)  # at least 1: rounding must not make an item impossible


class NegativeSampler:
    """A sampler of negatives for the users whose positives it knows.

    Args:
        masses_V: integer masses of the items, int64.
        positives: (indptr, indices) in CSR form: the training items of user k are `indices[indptr[k]:indptr[k + 1]]`,
            ascending. None excludes nothing.
    """

    def __init__(self, masses_V: np.ndarray, positives: tuple[np.ndarray, np.ndarray] | None) -> None:
        self.masses_V = masses_V
        self.edges = np.concatenate([[0], np.cumsum(masses_V)])
        self.total = int(self.edges[-1])
        self.uniform = bool((masses_V == 1).all())  # a point is then the item
        self.half_words = self.uniform and self.total <= HALF_WORDS_UP_TO
        self.excludes = positives is not None
        self._exclude(*(positives or (np.zeros(1, np.int64), np.zeros(0, np.int32))))

    def _exclude(self, indptr: np.ndarray, indices: np.ndarray) -> None:
        """Compute where each interval was removed from its user's mass, and the mass removed before it."""
        removed = np.concatenate([[0], np.cumsum(self.masses_V[indices])])
        user_P = np.repeat(np.arange(len(indptr) - 1), np.diff(indptr))
        before_P = removed[:-1] - removed[indptr[user_P]]  # mass removed for this user before each interval
        self.free_U = self.total - (removed[indptr[1:]] - removed[indptr[:-1]])
        # These users know every item that can be drawn. They draw from the whole mass; the batch masks the result.
        self.saturated_U = self.free_U == 0
        start_P = np.where(self.saturated_U[user_P], self.total, self.edges[indices] - before_P)
        self.start_P: np.ndarray = start_P.astype(np.int32 if self.total < 2**31 else np.int64)
        self.indptr, self.removed = indptr, removed

    @cached_property
    def _keys_P(self) -> np.ndarray:
        """Search keys of the intervals, user and point in one integer, ascending."""
        user_P = np.repeat(np.arange(len(self.indptr) - 1), np.diff(self.indptr))
        return np.asarray(user_P * (self.total + 1) + self.start_P)

    def draw(self, uniforms: np.ndarray, user: np.ndarray | None) -> np.ndarray:
        """Return the items of draws in [0, 1), int32, of the shape of `uniforms`.

        `user` indexes the users of `positives` and is broadcast; None excludes nothing.
        """
        if user is None or not self.excludes:
            return self._find_items((uniforms * self.total).astype(np.int64))
        user = user.astype(np.int64)  # a search key needs more than 32 bits
        saturated = self.saturated_U[user]
        point = (uniforms * np.where(saturated, self.total, self.free_U[user])).astype(np.int64)
        interval = np.searchsorted(self._keys_P, user * (self.total + 1) + point, side="right")
        skipped = np.where(saturated, 0, self.removed[interval] - self.removed[self.indptr[user]])
        return self._find_items(point + skipped)

    def draw_for_pairs(self, stream: "Stream", ordinal_B: np.ndarray, user_B: np.ndarray, n: int) -> np.ndarray:
        """Return items (B, n), int32: draws ordinal * n .. ordinal * n + n - 1 of a stream, for each pair.

        Compiled. The same bits as `draw` of `core.randomness.uniforms` (with `half_words` as here).
        """
        from distrec.kernels.numba import draws

        item_BN = np.empty((len(ordinal_B), n), np.int32)
        draws.draw_for_pairs(stream, ordinal_B, user_B, self._cumulative_mass, self._excluded_intervals, item_BN)
        return item_BN

    @cached_property
    def _cumulative_mass(self) -> "CumulativeMass":
        from distrec.kernels.numba.draws import CumulativeMass

        items = len(self.masses_V)
        shift = max(0, self.total.bit_length() - (2 * items).bit_length())  # two to four guide points for each item
        points = np.arange((self.total >> shift) + 1, dtype=np.int64) << shift
        return CumulativeMass(self.total, self.uniform, self.half_words, self.edges, shift, self._find_items(points))

    @cached_property
    def _excluded_intervals(self) -> "ExcludedIntervals":
        from distrec.kernels.numba.draws import ExcludedIntervals

        return ExcludedIntervals(self.indptr, self.free_U, self.start_P, self.removed)

    def _find_items(self, point: np.ndarray) -> np.ndarray:
        """Return the item at each point of the cumulative mass, int32."""
        if self.uniform:
            return point.astype(np.int32)
        return (np.searchsorted(self.edges, point, side="right") - 1).astype(np.int32)

    def log_q(self, items: np.ndarray, user: np.ndarray | None) -> np.ndarray:
        """Return the log probability with which `draw` returns each of `items` (for that user), float32."""
        log_total = self.log_free_U[user] if self.excludes and user is not None else np.log(self.total)
        log_q: np.ndarray = self.log_masses_V[items] - log_total
        return log_q.astype(np.float32)

    @cached_property
    def log_masses_V(self) -> np.ndarray:
        with np.errstate(divide="ignore"):  # items that are never drawn
            return np.asarray(np.log(self.masses_V))

    @cached_property
    def log_free_U(self) -> np.ndarray:
        """Log of the mass that each user draws from."""
        return np.asarray(np.log(np.where(self.saturated_U, self.total, self.free_U)))
