"""Draws of negatives by inversion of integer masses: exact, and without a retry even when known positives are excluded.

Each item i has an integer mass m_i; the items lie one after another on the line [0, sum m). A uniform draw picks a
point and so an item with probability m_i / sum m. To exclude a user's positives, their intervals are cut out of the
line: the draw picks a point of what is left, and the number of cuts before it, found by binary search, says how far
to shift it. All of it is integer arithmetic, so an excluded item cannot come back by rounding, and each draw costs
the same.
"""

import numpy as np

from distrec.sampling.config import SamplingConfig

_KEY_BITS = 62  # user number and mass share one signed 64-bit search key


def item_masses(config: SamplingConfig, item_degrees_V: np.ndarray, users: int) -> np.ndarray:
    """Integer masses of the items, (V,) int64. `users` bounds their sum, so that (user, mass) fits one search key."""
    if config.distribution == "uniform":
        return np.ones(len(item_degrees_V), np.int64)
    # Relative to the most popular item: a large exponent must not overflow.
    relative = item_degrees_V / max(1, item_degrees_V.max(initial=0))
    weights = np.where(item_degrees_V > 0, np.power(relative, config.beta), 0.0)
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
        self.offsets: np.ndarray | None = None
        if positives is not None:
            self._cut(*positives)

    def _cut(self, offsets: np.ndarray, items: np.ndarray) -> None:
        """Precomputes where each user's cuts lie on the line that is left, and how much was cut by each of them."""
        removed = np.concatenate([[0], np.cumsum(self.masses_V[items])])
        user = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
        before = removed[:-1] - removed[offsets[user]]  # mass cut from this user's line before each of its positives
        self.free = self.total - (removed[offsets[1:]] - removed[offsets[:-1]])
        # To these users every item that can be drawn is known. They draw from the whole line; the batch masks it.
        self.saturated = self.free == 0
        place = np.where(self.saturated[user], self.total, self.edges[items] - before)
        self.keys = user * (self.total + 1) + place  # ascending: users in order, places in order within a user
        self.offsets, self.removed = offsets, removed

    def draw(self, uniforms: np.ndarray, user: np.ndarray | None) -> np.ndarray:
        """Items for `uniforms` (any shape) in [0, 1); `user` broadcasts against it, in the numbering of `positives`.

        Returns int32 items of that shape. `user` is None where nothing is excluded.
        """
        if self.offsets is None or user is None:
            return self._item_at((uniforms * self.total).astype(np.int64))
        user = user.astype(np.int64)  # a search key needs more than 32 bits
        whole = self.saturated[user]
        place = (uniforms * np.where(whole, self.total, self.free[user])).astype(np.int64)
        cuts = np.searchsorted(self.keys, user * (self.total + 1) + place, side="right")
        first = self.offsets[user]
        shift = np.where(whole, 0, self.removed[cuts] - self.removed[first])
        return self._item_at(place + shift)

    def _item_at(self, place: np.ndarray) -> np.ndarray:
        if self.even:
            return place.astype(np.int32)
        return (np.searchsorted(self.edges, place, side="right") - 1).astype(np.int32)

    def log_q(self, items: np.ndarray, user: np.ndarray | None) -> np.ndarray:
        """log of the probability with which `draw` gives each of `items` (to that user), float32."""
        total = self.total
        if self.offsets is not None and user is not None:
            total = np.where(self.saturated, self.total, self.free)[user]
        return (np.log(self.masses_V[items]) - np.log(total)).astype(np.float32)
