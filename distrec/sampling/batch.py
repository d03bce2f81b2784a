"""The batch of one training step at one worker."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Batch:
    """The pairs of one step that belong to one worker, with their rows de-duplicated.

    Rows are given by their local index at their owner (`Partition.local`). Index arrays point into the lists of unique
    rows: `items_U[positive_index_B]` are the rows of the positives. They are int32, or uint16 where they came through
    an Arrow table with few rows (`arrow.index_dtype`).
    """

    epoch: int
    step: int
    pairs: int
    """Pairs of the whole step, over all workers: the divisor of a mean over the global batch."""
    users_U: np.ndarray
    """Unique users, local indices at this worker, ascending, int32."""
    user_index_B: np.ndarray
    items_U: np.ndarray
    """Unique items, positives and negatives together: local indices at their owners, sorted by (owner, item), int32."""
    item_splits_W: np.ndarray
    """Number of `items_U` that each worker owns."""
    positive_index_B: np.ndarray
    negative_index: np.ndarray
    """Flat indices of the negatives: B * N, or N where the batch shares its negatives."""
    masked: np.ndarray
    """Flat positions in the (B, N) scores of negatives that are known positives of the pair's user, int64."""
    log_q: np.ndarray
    """log q of each entry of `negative_index`, float32; empty unless the loss needs it."""
