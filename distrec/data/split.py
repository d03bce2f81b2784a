"""Held-out splits: the interactions that become the test or the validation part.

Choices at random go by a hash of seed, purpose and the bytes of the two raw ids. They depend neither on the order of
the lines, nor on the codes of the ids, nor on other users: new users, items and interactions move no other interaction,
except that a user's own number of interactions determines how many are held out.

The hash chains the output function of SplitMix64 (Steele, Lea and Flood, "Fast Splittable Pseudorandom Number
Generators", OOPSLA 2014).
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from distrec.core.errors import UserError
from distrec.core.randomness import SPLITMIX_INCREMENT, Purpose, hash_words

_WORD = 2**64 - 1


@dataclass(frozen=True)
class Split:
    """How to hold out a part.

    Attributes:
        method: value of `data.split`.
        fraction: share to hold out, in [0, 1); `leave_one_out` and `leave_last` hold out one interaction of each user.
        seed: any integer; its low 64 bits are used.
        purpose: the part; two purposes choose independently.
    """

    method: str
    fraction: float
    seed: int
    purpose: Purpose


def hold_out(
    users: np.ndarray,
    items: np.ndarray,
    user_hashes: np.ndarray,
    item_hashes: np.ndarray,
    split: Split,
    times: np.ndarray | None = None,
) -> np.ndarray:
    """Mark the interactions to hold out.

    Of a user's n interactions, `random` and `time_user` hold out `floor(fraction * n + r)`, with r in [0, 1) drawn from
    the user's hash: the share is met on average for users of few interactions, and exactly where `fraction * n` is
    whole. `leave_one_out` and `leave_last` hold out one. They choose the last in the order of time, then hash, or of
    hash alone. At least one interaction of a user remains, except with `time_global`; see `_last_of_all`.

    Args:
        users, items: (pairs,) codes from 0; no pair occurs twice.
        user_hashes, item_hashes: `hash_ids` of the ids, by code.
        split: the method.
        times: (pairs,) time of each interaction, for the methods that read it.

    Returns:
        (pairs,) bool: True is held out.

    Raises:
        UserError: `time_global` would hold out every interaction.
    """
    assert users.shape == items.shape and 0 <= split.fraction < 1, (users.shape, items.shape, split)
    if not len(users):
        return np.zeros(0, bool)
    if split.method == "time_global":
        assert times is not None
        return _last_of_all(times, split.fraction)
    counts = np.bincount(users)
    stream = _splitmix(np.array([split.seed & _WORD], np.uint64), np.array([split.purpose]))
    user_states = _splitmix(stream, user_hashes)
    quota = _quotas(counts, user_states[: len(counts)], split)
    by_time = () if split.method in ("random", "leave_one_out") else (times,)
    order = np.lexsort((items, _splitmix(user_states[users], item_hashes[items]), *by_time, users))
    after = np.repeat(np.cumsum(counts), counts) - np.arange(len(users))  # of each sorted pair: 1 is its user's last
    held = np.empty(len(users), bool)
    held[order] = after <= np.repeat(quota, counts)
    return held


def _quotas(counts: np.ndarray, user_states: np.ndarray, split: Split) -> np.ndarray:
    """Return how many of each user's interactions to hold out."""
    if split.method in ("leave_one_out", "leave_last"):
        return np.asarray(np.minimum(1, counts - 1))
    # 32 bits of r: its sum with any count is exact in float64, so r cannot round up to 1 and hold out one too many.
    r = (user_states >> np.uint64(32)) * 2.0**-32
    share = np.floor(split.fraction * counts + r) if split.fraction else np.zeros(len(counts))
    return np.asarray(np.minimum(share.astype(np.int64), counts - 1))


def _last_of_all(times: np.ndarray, fraction: float) -> np.ndarray:
    """Mark the interactions from that time on at which the share is reached; equal times are not separated."""
    wanted = round(fraction * len(times))
    if not wanted:
        return np.zeros(len(times), bool)
    first = np.partition(times, -wanted)[-wanted]
    held: np.ndarray = times >= first
    if held.all():
        raise UserError(
            f"data.split=time_global: all {len(times):,} interactions to split are of time {first} or later, which "
            f"leaves none for training; use a finer data.time_column, or another data.split"
        )
    return held


def hash_ids(ids: pa.Array) -> np.ndarray:
    """Return a hash of the bytes of each id, uint64. An integer has the hash of its decimal text."""
    text = ids.cast(pa.large_string())
    _, bounds_buffer, data_buffer = text.buffers()
    bounds = np.frombuffer(bounds_buffer, np.int64, len(text) + 1, 8 * text.offset) if len(text) else np.zeros(1, int)
    data = np.append(np.frombuffer(data_buffer or b"", np.uint8), np.zeros(8, np.uint8))
    words = np.ndarray(len(data) - 7, "<u8", data, strides=(1,))  # the 8 bytes from each byte on
    start, left = bounds[:-1], np.diff(bounds)
    hashes = _splitmix(np.zeros(len(text), np.uint64), left)
    rows = np.flatnonzero(left)
    for done in range(0, int(left.max(initial=0)), 8):
        rows = rows[left[rows] > done]
        beyond = (64 - 8 * np.minimum(left[rows] - done, 8)).astype(np.uint64)  # bits of bytes after the id
        word = words[start[rows] + done] << beyond >> beyond
        hashes[rows] = _splitmix(hashes[rows], word)
    return hashes


def _splitmix(state: np.ndarray, value: np.ndarray) -> np.ndarray:
    """Mix values into hash states (uint64, element-wise)."""
    return hash_words(state + value.astype(np.uint64) * SPLITMIX_INCREMENT)  # modulo 2^64
