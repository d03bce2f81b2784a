"""Ridge regressions of many rows against rows of the other side, compiled: one Cholesky factorisation for each row.

Every sum stays in registers (`add_weighted`). Of a symmetric matrix the upper triangle is computed, from a multiple of
32 columns on. E: interactions of all rows, grouped by row; P: consecutive ones of a row, whose rows fit the cache.
"""

import math

import numpy as np
from numba import njit, prange
from torch import Tensor

from distrec.kernels.numba.intrinsics import dot
from distrec.kernels.numba.launch import loop, run
from distrec.kernels.numba.weighted_sums import add_weighted

_TASKS = (
    256  # task t solves rows t, t + 256, ...: long rows often have neighbouring ids, and threads share tasks evenly
)
_BLOCK = 32  # interactions P, and alignment of columns


def solve_rows(
    lists: tuple[np.ndarray, np.ndarray],
    others_UD: Tensor,
    coefficients: tuple[np.ndarray, np.ndarray],
    gram_DD: Tensor,
    ridge_R: np.ndarray,
    share: float,
) -> tuple[Tensor, np.ndarray]:
    """Compute `models.ials.solve_rows` for float32 and float64 rows; arguments and result as there."""
    rows_RD, gain_R = others_UD.new_empty(len(ridge_R), others_UD.shape[1]), np.empty(len(ridge_R))
    dtype = rows_RD.numpy().dtype
    own_R, other_U, ridge_R = (np.ascontiguousarray(array, dtype) for array in (*coefficients, ridge_R))
    run(SOLVE, *lists, others_UD.numpy(), own_R, other_U, gram_DD.numpy(), ridge_R, share, rows_RD.numpy(), gain_R)
    return rows_RD, gain_R


@njit
def _add_outer_products(matrix_DD, right_1D, rows_UD, index_P, weight_P, share, scaled_DP):
    """Add share * c_p y_p y_p^T to the upper triangle, and c_p y_p to the right side, over the interactions p."""
    dim, count = len(matrix_DD), len(index_P)
    add_weighted(right_1D, 0, rows_UD, index_P, weight_P, 0, count)
    for p in range(count):
        row_D, weight = rows_UD[index_P[p]], share * weight_P[p]
        for d in range(dim):
            scaled_DP[d, p] = weight * row_D[d]
    for d in range(dim):
        add_weighted(matrix_DD, d, rows_UD, index_P, scaled_DP[d], 0, count, d // _BLOCK * _BLOCK)


@njit
def _solve_in_place(matrix_DD, right_1D, index_D, column_1D):
    """Replace A, by its upper triangle, by U, A = U^T U, and b by the solution x of A x = b. Return b^T x.

    NaN if A is not positive definite.
    """
    dim, gain = len(matrix_DD), 0.0
    column_1D[:] = 0
    for i in range(dim):
        row_D, first = matrix_DD[i], i // _BLOCK * _BLOCK
        for p in range(i):
            column_1D[0, p] = -matrix_DD[p, i]
        add_weighted(matrix_DD, i, matrix_DD, index_D, column_1D[0], 0, i, first)
        if not row_D[i] > 0:
            return np.nan
        scale = 1 / math.sqrt(row_D[i])
        for d in range(first, dim):
            row_D[d] *= scale
        right_1D[0, i] = (right_1D[0, i] + dot(column_1D, 0, right_1D, 0)) * scale  # of columns from i on they are 0
        gain += np.float64(right_1D[0, i]) * np.float64(right_1D[0, i])
    column_1D[:] = 0
    for i in range(dim - 1, -1, -1):  # the solution from the last column on
        column_1D[0, i] = (right_1D[0, i] - dot(matrix_DD, i, column_1D, 0)) / matrix_DD[i, i]
    right_1D[:] = column_1D
    return gain


@njit
def _solve_task(task, indptr, index_E, rows_UD, own_R, other_U, gram_DD, ridge_R, share, out_RD, gain_R):
    """Solve for the rows of a task. Its arrays are allocated here: in the parallel loop they take long to compile."""
    (rows, dim), weight = out_RD.shape, gram_DD.dtype.type(share)
    matrix_DD, scaled_DP = np.empty_like(gram_DD), np.empty((dim, _BLOCK), gram_DD.dtype)
    right_1D, column_1D = np.empty((1, dim), gram_DD.dtype), np.empty((1, dim), gram_DD.dtype)
    weight_P, index_D = np.empty(_BLOCK, gram_DD.dtype), np.arange(dim)
    for r in range(task, rows, _TASKS):
        matrix_DD[:] = gram_DD
        right_1D[:] = 0
        for d in range(dim):
            matrix_DD[d, d] += ridge_R[r]
        for start in range(indptr[r], indptr[r + 1], _BLOCK):
            index_P = index_E[start : min(start + _BLOCK, indptr[r + 1])]
            for p in range(len(index_P)):
                weight_P[p] = own_R[r] * other_U[index_P[p]]
            _add_outer_products(matrix_DD, right_1D, rows_UD, index_P, weight_P, weight, scaled_DP)
        gain_R[r] = _solve_in_place(matrix_DD, right_1D, index_D, column_1D)
        out_RD[r] = right_1D[0]


def _solve(indptr, index_E, rows_UD, own_R, other_U, gram_DD, ridge_R, share, out_RD, gain_R):
    for task in prange(_TASKS):
        _solve_task(task, indptr, index_E, rows_UD, own_R, other_U, gram_DD, ridge_R, share, out_RD, gain_R)


SOLVE = loop(_solve)
