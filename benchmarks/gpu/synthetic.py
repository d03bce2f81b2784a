"""Synthetic interactions of a given size: a power law over items, a log-normal law over users."""

from functools import cache

import numpy as np

GOWALLA = (29_858, 40_981, 810_128)  # users, items, training interactions


@cache
def interactions(users: int, items: int, count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return `count` distinct (user, item) pairs, sorted by user and item, one a user or more. Do not write to them."""
    random = np.random.default_rng(seed)
    weight_U = random.lognormal(0.0, 0.9, users)
    weight_V = (np.arange(items) + 20.0) ** -0.7
    random.shuffle(weight_V)
    share_U, share_V = np.cumsum(weight_U) / weight_U.sum(), np.cumsum(weight_V) / weight_V.sum()
    key = np.arange(users) * items + random.integers(0, items, users)
    while len(key) < count:
        missing = count - len(key)
        drawn = int(1.5 * missing) + 16
        user = np.searchsorted(share_U, random.random(drawn)).clip(0, users - 1)
        item = np.searchsorted(share_V, random.random(drawn)).clip(0, items - 1)
        new = np.setdiff1d(user * items + item, key)
        key = np.concatenate([key, random.permutation(new)[:missing]])
    key.sort()
    return key // items, key % items


def csr(users: int, user_E: np.ndarray, item_E: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return CSR (indptr, indices), indices ascending within a user, of pairs that are sorted by user and item."""
    return np.concatenate([[0], np.cumsum(np.bincount(user_E, minlength=users))]), item_E
