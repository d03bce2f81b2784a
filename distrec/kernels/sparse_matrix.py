"""A constant sparse matrix, and its products with dense rows, forward and backward.

V: rows of the matrix; X: its columns; E: its entries; U: selected rows or columns.
"""

import warnings
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from distrec.kernels.dispatch import has_kernel

warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta state")


@dataclass(frozen=True, eq=False)
class SparseMatrix:
    """A matrix of float32 in CSR form, (V, X). Products run on the device of the dense rows.

    On a CPU a product is a compiled loop. Each row is summed in the order of its entries by one thread, so the number
    of threads does not change the result.
    """

    indptr_V: np.ndarray
    """int64, (V + 1,)."""
    column_E: np.ndarray
    """int32."""
    weight_E: np.ndarray
    columns: int

    def __post_init__(self) -> None:
        arrays = zip((self.indptr_V, self.column_E, self.weight_E), ("int64", "int32", "float32"), strict=True)
        assert all(array.dtype == dtype for array, dtype in arrays)
        # Compiled loops do not check indices.
        assert len(self.column_E) == 0 or 0 <= self.column_E.min() <= self.column_E.max() < self.columns

    def transposed(self) -> "SparseMatrix":
        order = np.argsort(self.column_E, kind="stable")
        row_E = np.repeat(np.arange(self.rows, dtype=np.int32), np.diff(self.indptr_V))[order]
        indptr_X = np.concatenate([[0], np.cumsum(np.bincount(self.column_E, minlength=self.columns))])
        return SparseMatrix(indptr_X.astype(np.int64), row_E, self.weight_E[order], self.rows)

    @property
    def rows(self) -> int:
        return len(self.indptr_V) - 1

    def product(self, values_XD: Tensor, rows_U: Tensor | None = None, columns_U: Tensor | None = None) -> Tensor:
        """Return the product with dense rows, (V, D).

        Args:
            values_XD: one row for each column of the matrix; float32.
            rows_U: rows of the product to compute: the result is (U, D).
            columns_U: `values_XD` has one row for each of these columns, which are distinct; the others have zeros.
        """
        assert rows_U is None or columns_U is None
        if has_kernel(values_XD) and values_XD.dtype == torch.float32:
            from distrec.kernels.numba import graph_product  # importing numba takes 0.5 s

            if columns_U is not None:
                return graph_product.of_columns(self, values_XD, columns_U)
            return graph_product.of_rows(self, values_XD, rows_U)
        return self.product_reference(values_XD, rows_U, columns_U)

    def product_reference(
        self, values_XD: Tensor, rows_U: Tensor | None = None, columns_U: Tensor | None = None
    ) -> Tensor:
        """`product` by torch's sparse product, on any device."""
        if columns_U is not None:
            dense_XD = values_XD.new_zeros(self.columns, values_XD.shape[1])
            values_XD = dense_XD.index_copy(0, columns_U, values_XD)
        product_VD: Tensor = self.csr(values_XD.device) @ values_XD
        return product_VD if rows_U is None else product_VD.index_select(0, rows_U)

    def csr(self, device: torch.device) -> Tensor:
        """Return the matrix as a sparse CSR tensor of torch."""
        if device not in self._csr:
            arrays = self.indptr_V, self.column_E.astype(np.int64), self.weight_E
            indptr, column_E, weight_E = (torch.from_numpy(array).to(device) for array in arrays)
            size = (self.rows, self.columns)
            self._csr[device] = torch.sparse_csr_tensor(indptr, column_E, weight_E, size=size, check_invariants=False)
        return self._csr[device]

    @cached_property
    def _csr(self) -> dict[torch.device, Tensor]:
        return {}

    @cached_property
    def all_rows(self) -> np.ndarray:
        """The index of every row, int64, (V,)."""
        return np.arange(self.rows)


class SparseProduct(torch.autograd.Function):
    """`SparseMatrix.product` with all rows, given the transposed matrix too."""

    @staticmethod
    def forward(ctx: Any, matrix: SparseMatrix, transposed: SparseMatrix, values_XD: Tensor) -> Tensor:
        ctx.transposed = transposed
        return matrix.product(values_XD)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_VD: Tensor) -> tuple[None, None, Tensor]:
        return None, None, ctx.transposed.product(grad_VD)
