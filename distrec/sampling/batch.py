"""The batch of one training step at one worker.

M: extra positives of a pair; H: length of a history.
"""

from dataclasses import dataclass, field

import numpy as np


def _empty(dtype: type[np.generic]) -> np.ndarray:
    empty = np.zeros(0, dtype)  # shared by all batches: ten new ones each took half the time of a batch of pairs
    array: np.ndarray = field(default_factory=lambda: empty)
    return array


@dataclass(frozen=True)
class BatchNeeds:
    """What a step reads beyond its users, positives and negatives."""

    log_q: bool = False
    """Log probabilities of the negatives."""
    extra_positives: int = 0
    """Further positives of each pair's user, M."""
    history: int = 0
    """Training items that represent a user, H."""
    ordinals: bool = False
    """Ordinals of the interactions, which key random numbers of a pair."""
    pairs_only: bool = False
    """Users, items and ordinals of the pairs, in `users_U`, `items_U` and `ordinal_B`, and nothing else: what is drawn
    for them is drawn on a GPU."""


@dataclass(frozen=True)
class Batch:
    """The pairs of one step that belong to one worker, with their rows de-duplicated.

    Rows are given by their local index at their owner (`Partition.local`). Index arrays point into the lists of unique
    rows: `items_U[positive_index_B]` are the rows of the positives. They are int32, or uint16 where they came through
    an Arrow table with few rows (`arrow.index_dtype`), except `history_index`.
    """

    epoch: int
    step: int
    pairs: int
    """Pairs of the whole step, over all workers: the divisor of a mean over the global batch."""
    users_U: np.ndarray = _empty(np.int32)
    """Unique users, local indices at this worker, ascending, int32."""
    user_index_B: np.ndarray = _empty(np.int32)
    items_U: np.ndarray = _empty(np.int32)
    """Unique items of all uses together: local indices at their owners, sorted by (owner, item), int32."""
    item_splits_W: np.ndarray = _empty(np.int32)
    """Number of `items_U` that each worker owns."""
    positive_index_B: np.ndarray = _empty(np.int32)
    negative_index: np.ndarray = _empty(np.int32)
    """Flat indices of the negatives: B * N, or N where the batch shares its negatives."""
    masked: np.ndarray = _empty(np.int64)
    """Flat positions in the (B, N) scores of negatives that are known positives of the pair's user, int64."""
    log_q: np.ndarray = _empty(np.float32)
    """log q of each entry of `negative_index`, float32; empty unless needed, as are the arrays below."""
    extra_index: np.ndarray = _empty(np.int32)
    """Flat indices of the extra positives, B * M."""
    history_index: np.ndarray = _empty(np.int32)
    """Flat indices of the histories of `users_U`, U * H, int32; -1 is padding."""
    ordinal_B: np.ndarray = _empty(np.int64)
    """Ordinal of each pair's interaction in the epoch, int64."""
