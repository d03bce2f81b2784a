"""Products of sparse matrices and dense rows: compiled and by torch, against dense products."""

import numpy as np
import pytest
import torch

from distrec.kernels.sparse_matrix import SparseMatrix, SparseProduct


def random_matrix(rows, columns, density=0.2):
    """Return a matrix with empty rows and columns, sparse and dense."""
    dense = torch.randn(rows, columns) * (torch.rand(rows, columns) < density)
    dense[: rows // 5] = 0
    dense[:, : columns // 5] = 0
    row_E, column_E = np.nonzero(dense.numpy())
    indptr_V = np.searchsorted(row_E, np.arange(rows + 1))
    return SparseMatrix(indptr_V, column_E.astype(np.int32), dense.numpy()[row_E, column_E], columns), dense


@pytest.mark.parametrize("form", ["product", "product_reference"])
@pytest.mark.parametrize("shape", [(40, 30), (1, 7), (300, 5), (9, 0), (0, 4)])
@pytest.mark.parametrize("dim", [1, 64, 70, 100])
def test_products(form, shape, dim):
    matrix, dense = random_matrix(*shape)
    values_XD = torch.randn(shape[1], dim)
    product = getattr(matrix, form)
    torch.testing.assert_close(product(values_XD), dense @ values_XD)
    torch.testing.assert_close(getattr(matrix.transposed(), form)(dense @ values_XD), dense.T @ (dense @ values_XD))
    rows_U, columns_U = (torch.randperm(length)[: length // 2 + 1][:length] for length in shape)
    torch.testing.assert_close(product(values_XD, rows_U), (dense @ values_XD)[rows_U])
    expected = dense[:, columns_U] @ values_XD[columns_U]
    torch.testing.assert_close(product(values_XD[columns_U], columns_U=columns_U), expected)


@pytest.mark.long
def test_threads_change_no_bit():
    matrix, _ = random_matrix(500, 400)
    values_XD, some = torch.randn(400, 64), torch.randperm(400)[:100]
    found = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        found.append([matrix.product(values_XD), matrix.product(values_XD[some], columns_U=some)])
    torch.set_num_threads(1)
    assert all(torch.equal(one, two) for one, two in zip(*found, strict=True))


def test_gradient_is_the_transposed_product():
    matrix, dense = random_matrix(20, 30)
    values_XD, weights = torch.randn(30, 8, requires_grad=True), torch.randn(20, 8)
    (SparseProduct.apply(matrix, matrix.transposed(), values_XD) * weights).sum().backward()
    torch.testing.assert_close(values_XD.grad, dense.T @ weights)


def test_wrong_indices_and_shapes():
    matrix, _ = random_matrix(20, 30)
    with pytest.raises(IndexError):
        matrix.product(torch.zeros(30, 4), torch.tensor([20]))
    with pytest.raises(IndexError):
        matrix.product(torch.zeros(1, 4), columns_U=torch.tensor([-1]))
    with pytest.raises(ValueError):
        matrix.product(torch.zeros(29, 4))
