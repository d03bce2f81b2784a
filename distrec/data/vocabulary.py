"""Vocabularies: raw ids to codes 0, 1, ... in the sorted order of the raw ids, independent of the order of lines."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc


def unify(columns: Sequence[pa.ChunkedArray]) -> list[pa.ChunkedArray]:
    """Cast the id columns of several files to one type: int64 if every id of every file is an integer, else strings.

    Text counts as an integer if it is the canonical form of one: `7` does; `007` and `+7` stay distinct string ids.
    A CSV file and a typed file with the same ids therefore give the same result.
    """
    integers = [_as_integers(column) for column in columns]
    if all(column is not None for column in integers):
        return [column for column in integers if column is not None]
    return [column.cast(pa.large_string()) for column in columns]


def vocabulary(columns: Sequence[pa.ChunkedArray]) -> pa.Array:
    """Return the distinct ids of columns of one type, ascending: integers by value, strings by code point."""
    distinct = pc.unique(pa.chunked_array([chunk for column in columns for chunk in column.chunks], columns[0].type))
    return distinct.take(pc.sort_indices(distinct))


def to_codes(column: pa.ChunkedArray, ids: pa.Array) -> np.ndarray:
    """Return the code of each id, its index in the vocabulary `ids`: int32."""
    return np.asarray(pc.index_in(column, value_set=ids), np.int32)


def _as_integers(column: pa.ChunkedArray) -> pa.ChunkedArray | None:
    if pa.types.is_integer(column.type):
        return column
    try:
        integers = column.cast(pa.int64())
    except pa.ArrowInvalid:
        return None
    if len(column) and not pc.all(pc.equal(integers.cast(column.type), column)).as_py():
        return None
    return integers
