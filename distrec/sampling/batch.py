"""One step's work for one worker, and its form as a row of an Arrow table: a block of the stream is such a table."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

import numpy as np
import pyarrow as pa


@dataclass(frozen=True)
class Batch:
    """The pairs of one step that fall to one worker, de-duplicated ahead of the trainer.

    B counts this worker's pairs. Rows are given by their local number at their owner (`Plan.local`); `*_at` arrays
    point into the lists of unique rows, so `items_U[positive_at_B]` are the positives' rows. They are int32, or
    uint16 where they came through Ray and fit (`place_type`).
    """

    epoch: int
    step: int
    pairs: int
    """Pairs of the whole step, over all workers: what a mean over the batch divides by."""
    users_U: np.ndarray
    """Unique users, local numbers on this worker, ascending, int32."""
    user_index_B: np.ndarray
    items_U: np.ndarray
    """Unique items, positives and negatives together: local numbers at their owners, by (owner, item), int32."""
    item_splits_W: np.ndarray
    """How many of `items_U` each worker owns."""
    positive_index_B: np.ndarray
    negative_index: np.ndarray
    """Flat: B * N places for negatives of each pair, N places for negatives shared by the batch."""
    masked: np.ndarray
    """Flat places in the (B, N) scores of negatives that are known positives of the pair's user, int64."""
    log_q: np.ndarray
    """log q of each entry of `negative_at`, float32; empty unless the loss asks for it."""


_SCALARS = ("epoch", "step", "pairs")
_ARRAYS = {f.name: np.int32 for f in fields(Batch) if f.name not in _SCALARS} | {
    "masked": np.int64,
    "log_q": np.float32,
}
_PLACES = {"user_index_B": "users_U", "positive_index_B": "items_U", "negative_index": "items_U"}


def index_dtype(rows: int) -> type[np.integer]:
    """What places among so many rows are sent as: most of a batch are places, and its rows mostly fewer than 65,536."""
    return np.uint16 if rows <= 2**16 else np.int32


def to_table(batches: Sequence[Batch]) -> pa.Table:
    """A table with one row a step."""
    columns = {name: pa.array([getattr(b, name) for b in batches], pa.int64()) for name in _SCALARS}
    for name, kind in _ARRAYS.items():
        arrays = [getattr(b, name) for b in batches]
        if name in _PLACES:
            kind = index_dtype(max(len(getattr(b, _PLACES[name])) for b in batches))
        offsets = np.cumsum([0] + [len(a) for a in arrays])
        values = pa.array(np.concatenate(arrays, dtype=kind, casting="unsafe"))
        columns[name] = pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), values)
    return pa.table(columns)


def from_table(table: pa.Table) -> Iterator[Batch]:
    """The steps of a table, in its order; arrays are views of the table's memory."""
    for block in table.to_batches():
        scalars = {name: block.column(name).to_numpy() for name in _SCALARS}
        lists = {name: block.column(name) for name in _ARRAYS}
        offsets = {name: column.offsets.to_numpy() for name, column in lists.items()}
        values = {name: column.values.to_numpy() for name, column in lists.items()}
        for row in range(block.num_rows):
            arrays = {name: values[name][offsets[name][row] : offsets[name][row + 1]] for name in _ARRAYS}
            yield Batch(**{name: int(scalars[name][row]) for name in _SCALARS}, **arrays)
