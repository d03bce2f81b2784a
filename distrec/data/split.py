"""What is held out: a share of each user's interactions, chosen by a hash of the pair itself.

The hash is the output function of SplitMix64 (Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators",
OOPSLA 2014), chained over seed, purpose, user and item. A pair's draw so depends on nothing but these four numbers:
not on the order of the lines, and not on how often anything was drawn before.
"""

import numpy as np

from distrec.core.randomness import Purpose

_GOLDEN = 0x9E3779B97F4A7C15
_WORD = 2**64 - 1


def hold_out(users: np.ndarray, items: np.ndarray, fraction: float, seed: int, purpose: Purpose) -> np.ndarray:
    """Marks the interactions to hold out.

    Of a user's n interactions, `floor(fraction * n + r)` with the lowest hashes are taken, where r in [0, 1) is drawn
    from the user's own hash: the share is met on average however few interactions a user has, and exactly where
    `fraction * n` is whole. One interaction at least stays behind.

    Args:
        users, items: (N,) codes from 0; no pair occurs twice.
        fraction: share to hold out, in [0, 1).
        seed: any integer; its low 64 bits are used.
        purpose: which split; two purposes choose independently.

    Returns:
        (N,) bool: True is held out.
    """
    assert users.shape == items.shape and 0 <= fraction < 1, (users.shape, items.shape, fraction)
    held = np.zeros(len(users), bool)
    if not len(users) or fraction == 0:
        return held
    counts = np.bincount(users)
    stream = _mix(np.array([seed & _WORD], np.uint64), np.array([purpose]))
    user_hash = _mix(stream, np.arange(len(counts)))
    # 32 bits of r: sums with any count are exact in float64, so r cannot round up to 1 and take one too many.
    r = (user_hash >> np.uint64(32)) * 2.0**-32
    quota = np.minimum(np.floor(fraction * counts + r).astype(np.int64), counts - 1)
    order = np.lexsort((items, _mix(user_hash[users], items), users))
    starts = np.cumsum(counts) - counts
    place = np.arange(len(users)) - np.repeat(starts, counts)  # rank of each sorted pair within its user
    held[order] = place < np.repeat(quota, counts)
    return held


def _mix(state: np.ndarray, value: np.ndarray) -> np.ndarray:
    """Takes values into hash states (uint64, element-wise)."""
    step = value.astype(np.uint64) + np.uint64(1)
    z = state + step * np.uint64(_GOLDEN)  # wraps around, as intended
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
