"""Products of a sparse matrix in CSR form and dense rows on the CPU.

A row of the result is a weighted sum of dense rows that stays in registers, so a product reads 4 D bytes for each entry
and writes each row once. It is bound by these reads: of D = 64, four cache lines for each entry. V: rows of the matrix;
X: its columns; E: its entries; P: entries of a row; U: selected rows or columns.
"""

import numpy as np
import torch
from numba import njit, prange
from torch import Tensor

from distrec.core.buffer_pool import empty
from distrec.kernels.numba.launch import loop, run
from distrec.kernels.numba.weighted_sums import add_weighted

BLOCKS = 64  # of rows with about equally many entries each


def of_rows(matrix, values_XD: Tensor, rows_U: Tensor | None) -> Tensor:
    """Return some rows of the product, (U, D), or all: `SparseMatrix.product` without `columns_U`."""
    _check_values(values_XD, matrix.columns)
    row_U, start_U = matrix.all_rows, matrix.indptr_V
    if rows_U is not None:
        row_U = _indices(rows_U, matrix.rows)
        start_U = np.concatenate([[0], np.cumsum(matrix.indptr_V[row_U + 1] - matrix.indptr_V[row_U])])
    out_UD = empty([len(row_U), values_XD.shape[1]], values_XD)
    entries = matrix.indptr_V, matrix.column_E, matrix.weight_E
    run(ROWS, *entries, values_XD.detach().contiguous().numpy(), row_U, start_U, out_UD.numpy())
    return out_UD


def of_columns(matrix, values_UD: Tensor, columns_U: Tensor) -> Tensor:
    """Return the product with rows that are zero in all but some columns: `SparseMatrix.product` with `columns_U`."""
    _check_values(values_UD, len(columns_U))
    position_X = np.full(matrix.columns, -1, np.int32)
    position_X[_indices(columns_U, matrix.columns)] = np.arange(len(columns_U))
    out_VD = empty([matrix.rows, values_UD.shape[1]], values_UD)
    entries = matrix.indptr_V, matrix.column_E, matrix.weight_E
    run(COLUMNS, *entries, values_UD.detach().contiguous().numpy(), position_X, out_VD.numpy())
    return out_VD


def _check_values(values_XD: Tensor, rows: int) -> None:
    if values_XD.dim() != 2 or len(values_XD) != rows:
        raise ValueError(f"expected {rows} rows, not a tensor of shape {tuple(values_XD.shape)}")


def _indices(index_U: Tensor, length: int) -> np.ndarray:
    """Return indices as an array; compiled code does not check them."""
    index: np.ndarray = index_U.to(torch.int64).contiguous().numpy()
    if len(index) and (index.min() < 0 or index.max() >= length):
        raise IndexError("an index outside the sparse matrix")
    return index


@njit
def _first_row(start_V, block):
    """Return the first row of a block."""
    if block == BLOCKS:
        return len(start_V) - 1
    return np.searchsorted(start_V, start_V[-1] * block // BLOCKS)


def _rows(indptr_V, column_E, weight_E, values_XD, row_U, start_U, out_UD):
    """Write some rows of the product; `start_U` has the number of entries in the selected rows before each."""
    for block in prange(BLOCKS):
        for u in range(_first_row(start_U, block), _first_row(start_U, block + 1)):
            out_UD[u] = 0
            add_weighted(out_UD, u, values_XD, column_E, weight_E, indptr_V[row_U[u]], indptr_V[row_U[u] + 1])


def _columns(indptr_V, column_E, weight_E, values_UD, position_X, out_VD):
    """Write the product with the rows of some columns; `position_X` has their index in `values_UD`, or -1.

    The entries in these columns are first selected, without a branch, as it could not be predicted.
    """
    for block in prange(BLOCKS):
        first, end, longest = _first_row(indptr_V, block), _first_row(indptr_V, block + 1), 0
        for v in range(first, end):
            longest = max(longest, indptr_V[v + 1] - indptr_V[v])
        position_P, weight_P = np.empty(longest, np.int32), np.empty(longest, weight_E.dtype)
        for v in range(first, end):
            count = 0
            for e in range(indptr_V[v], indptr_V[v + 1]):
                position = position_X[column_E[e]]
                position_P[count], weight_P[count] = position, weight_E[e]
                count += position >= 0
            out_VD[v] = 0
            add_weighted(out_VD, v, values_UD, position_P, weight_P, 0, count)


ROWS, COLUMNS = loop(_rows), loop(_columns)
