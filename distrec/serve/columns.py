"""Arrow columns from their buffers: `pyarrow.array` imports pandas, which takes longer than to rank for a user."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa


def numeric(values: np.ndarray) -> pa.Array:
    """Return a column of the values, without a copy."""
    values = np.ascontiguousarray(values)
    return pa.Array.from_buffers(pa.from_numpy_dtype(values.dtype), len(values), [None, pa.py_buffer(values)])


def texts(values: Sequence[str]) -> pa.Array:
    """Return a column of texts, large_string."""
    encoded = [value.encode() for value in values]
    bounds = np.cumsum([0, *map(len, encoded)], dtype=np.int64)
    buffers = [None, pa.py_buffer(bounds), pa.py_buffer(b"".join(encoded))]
    return pa.Array.from_buffers(pa.large_string(), len(encoded), buffers)
