"""Dense products of sparse matrices in CSR form, compiled: co-occurrences of items, and sums over item histories.

A row of the result is accumulated in the order of the row of the first matrix, so that it has the same bits however the
rows are distributed. M: rows of the second matrix.
"""

import numpy as np
from numba import prange

from distrec.kernels.numba.launch import loop, run


def add_sparse_product(
    first: tuple[np.ndarray, np.ndarray],
    scale_M: np.ndarray,
    second: tuple[np.ndarray, np.ndarray],
    values: np.ndarray,
    out_RV: np.ndarray,
) -> None:
    """Add A diag(scale) B to a dense matrix. Compiled code checks no index.

    Args:
        first: (indptr, indices) of A, (R, M), whose entries are 1.
        scale_M: of the dtype of the result.
        second: (indptr, indices) of B, (M, V).
        values: entries of B, of the dtype of the result.
        out_RV: changed in place.
    """
    run(ADD, *first, scale_M, *second, values, out_RV)


def _add(indptr, indices, scale_M, second_indptr, second_indices, values, out_RV):
    for r in prange(len(out_RV)):
        for p in range(indptr[r], indptr[r + 1]):
            m = indices[p]
            for q in range(second_indptr[m], second_indptr[m + 1]):
                out_RV[r, second_indices[q]] += scale_M[m] * values[q]


ADD = loop(_add)
