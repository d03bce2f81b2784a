"""Held-out split: a share of each user's interactions, chosen by a hash of the pair.

The hash is the output function of SplitMix64 (Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators",
OOPSLA 2014), chained over seed, purpose, user and item. The choice depends on these four values alone, not on the
order of the lines and not on earlier draws.
"""

import numpy as np

from distrec.core.randomness import SPLITMIX_INCREMENT, Purpose, hash_words

_WORD = 2**64 - 1


def hold_out(users: np.ndarray, items: np.ndarray, fraction: float, seed: int, purpose: Purpose) -> np.ndarray:
    """Mark the interactions to hold out.

    Holds out the `floor(fraction * n + r)` interactions with the lowest hashes of a user's n, with r in [0, 1) drawn
    from the user's hash: the share is met on average for users of few interactions, and exactly where `fraction * n`
    is whole. At least one interaction of a user remains.

    Args:
        users, items: (pairs,) codes from 0; no pair occurs twice.
        fraction: share to hold out, in [0, 1).
        seed: any integer; its low 64 bits are used.
        purpose: the split; two purposes choose independently.

    Returns:
        (pairs,) bool: True is held out.
    """
    assert users.shape == items.shape and 0 <= fraction < 1, (users.shape, items.shape, fraction)
    held = np.zeros(len(users), bool)
    if not len(users) or fraction == 0:
        return held
    counts = np.bincount(users)
    stream = _splitmix(np.array([seed & _WORD], np.uint64), np.array([purpose]))
    user_hash = _splitmix(stream, np.arange(len(counts)))
    # 32 bits of r: its sum with any count is exact in float64, so r cannot round up to 1 and hold out one too many.
    r = (user_hash >> np.uint64(32)) * 2.0**-32
    quota = np.minimum(np.floor(fraction * counts + r).astype(np.int64), counts - 1)
    order = np.lexsort((items, _splitmix(user_hash[users], items), users))
    starts = np.cumsum(counts) - counts
    rank = np.arange(len(users)) - np.repeat(starts, counts)  # of each sorted pair within its user
    held[order] = rank < np.repeat(quota, counts)
    return held


def _splitmix(state: np.ndarray, value: np.ndarray) -> np.ndarray:
    """Mix values into hash states (uint64, element-wise)."""
    return hash_words(state + value.astype(np.uint64) * SPLITMIX_INCREMENT)  # modulo 2^64
