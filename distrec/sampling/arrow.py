"""Wire format of batches: an Arrow table with one row a step. A block of the stream is such a table."""

from collections.abc import Iterator, Sequence
from dataclasses import MISSING, fields

import numpy as np
import pyarrow as pa

from distrec.sampling.batch import Batch

_SCALARS = ("epoch", "step", "pairs")
_ARRAYS: dict[str, type[np.generic]] = {f.name: np.int32 for f in fields(Batch) if f.name not in _SCALARS}
_ARRAYS |= {"masked": np.int64, "log_q": np.float32, "ordinal_B": np.int64}
_OPTIONAL = {f.name for f in fields(Batch) if f.default_factory is not MISSING}
_INDEXED_ROWS = {"user_index_B": "users_U"}
_INDEXED_ROWS |= dict.fromkeys(("positive_index_B", "negative_index", "extra_index"), "items_U")


def index_dtype(rows: int) -> type[np.integer]:
    """Return the smallest dtype that can index this many rows: most of a batch is indices, mostly of < 65,536 rows."""
    return np.uint16 if rows <= 2**16 else np.int32


def to_table(batches: Sequence[Batch]) -> pa.Table:
    """Return a table with one row for each batch, without the columns of arrays that its steps do not need."""
    columns = {name: pa.array([getattr(b, name) for b in batches], pa.int64()) for name in _SCALARS}
    for name, dtype in _ARRAYS.items():
        arrays = [getattr(b, name) for b in batches]
        if name in _OPTIONAL and not any(map(len, arrays)):
            continue
        if name in _INDEXED_ROWS:
            dtype = index_dtype(max(len(getattr(b, _INDEXED_ROWS[name])) for b in batches))
        offsets = np.cumsum([0] + [len(a) for a in arrays])
        values = pa.array(np.concatenate(arrays, dtype=dtype, casting="unsafe"))
        columns[name] = pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), values)
    return pa.table(columns)


def from_table(table: pa.Table) -> Iterator[Batch]:
    """Yield the batches of a table in its order; their arrays are read-only views of the table's memory."""
    for block in table.to_batches():
        scalars = {name: block.column(name).to_pylist() for name in _SCALARS}
        lists = {name: block.column(name) for name in block.schema.names if name not in _SCALARS}
        offsets = {name: column.offsets.to_pylist() for name, column in lists.items()}
        values = {name: column.values.to_numpy() for name, column in lists.items()}
        for row in range(block.num_rows):
            arrays = {name: values[name][offsets[name][row] : offsets[name][row + 1]] for name in lists}
            yield Batch(**{name: column[row] for name, column in scalars.items()}, **arrays)
