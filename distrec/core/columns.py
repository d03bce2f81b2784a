"""Arrow columns from and to their buffers: conversions of pyarrow import pandas, which takes longer than to rank."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa


def numeric(array: np.ndarray) -> pa.Array:
    """Return a column of the values, without a copy."""
    array = np.ascontiguousarray(array)
    return pa.Array.from_buffers(pa.from_numpy_dtype(array.dtype), len(array), [None, pa.py_buffer(array)])


def values(column: pa.Array, dtype: type[np.generic]) -> np.ndarray:
    """Return the values of a column of fixed width, anything where they are null."""
    if not len(column):  # it may have no buffer
        return np.empty(0, dtype)
    return np.frombuffer(column.buffers()[1], dtype, len(column), column.offset * np.dtype(dtype).itemsize)


def texts(words: Sequence[str]) -> pa.Array:
    """Return a column of strings, large_string."""
    encoded = [word.encode() for word in words]
    bounds = np.cumsum([0, *map(len, encoded)], dtype=np.int64)
    buffers = [None, pa.py_buffer(bounds), pa.py_buffer(b"".join(encoded))]
    return pa.Array.from_buffers(pa.large_string(), len(encoded), buffers)
