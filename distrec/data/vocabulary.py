"""Raw ids to codes: 0, 1, ... in the sorted order of the raw ids, so that the order of lines decides nothing."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc


def unify(columns: Sequence[pa.ChunkedArray]) -> list[pa.ChunkedArray]:
    """The id columns of several files in one type: int64 if every id of every file is an integer, else strings.

    Text counts as an integer if it is written the way an integer prints: `7` does, `007` and `+7` do not, because as
    text they are ids of their own. So the same ids come out of a CSV file and of a typed one.
    """
    numbers = [_as_integers(column) for column in columns]
    if all(column is not None for column in numbers):
        return [column for column in numbers if column is not None]
    return [column.cast(pa.large_string()) for column in columns]


def vocabulary(columns: Sequence[pa.ChunkedArray]) -> pa.Array:
    """The distinct ids of columns of one type, ascending: by value if integers, by code point if strings."""
    distinct = pc.unique(pa.chunked_array([chunk for column in columns for chunk in column.chunks], columns[0].type))
    return distinct.take(pc.sort_indices(distinct))


def encode(column: pa.ChunkedArray, ids: pa.Array) -> np.ndarray:
    """The code of each id: its position in the vocabulary. int32."""
    return pc.index_in(column, value_set=ids).to_numpy().astype(np.int32, copy=False)


def _as_integers(column: pa.ChunkedArray) -> pa.ChunkedArray | None:
    if pa.types.is_integer(column.type):
        return column
    try:
        numbers = column.cast(pa.int64())
    except pa.ArrowInvalid:
        return None
    if len(column) and not pc.all(pc.equal(numbers.cast(column.type), column)).as_py():
        return None
    return numbers
