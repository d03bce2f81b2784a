"""EASE, plain and debiased: an exact dense item-item regression.

X holds the interactions, users by items. The first worker computes S (items, items) in memory of one or two dense
matrices; then each worker receives the columns of its items, in float32.
"""

from typing import ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from distrec.core.errors import UserError
from distrec.core.memory import free_memory
from distrec.core.status import share, stage
from distrec.data.dataset import Dataset
from distrec.kernels.sparse_matrix import SparseMatrix
from distrec.models.base import DataSizes, models
from distrec.models.solver import Csr, DebiasedConfig, ItemItemLearner, blocks, cooccurrences, group
from distrec.sharding.checkpoint import Rows
from distrec.sharding.device_copy import to_device
from distrec.sharding.table import ITEMS

_GIB = 2**30


@models.register("ease")
class EASE(DebiasedConfig):
    """EASE, a linear item-item autoencoder (Steck, WWW 2019), and its debiased forms (MINE paper, Sec. 5).

    Minimises |X - X S|^2 - a |X S|^2 + lam |S|^2 with diag S = 0. The debiased form minimises sum_u ( c_u sum_{i in
    I_u} ((y_ui - 1)^2 - y_ui^2) + (1 - a) sum_i y_ui^2 ) + lam |S|^2, y = X S: the same if c_u = 1.
    """

    regularization: float = Field(200.0, gt=0)
    """Strength lam of the L2 regularisation."""
    prediction_discount: float = Field(0.0, ge=0, lt=1)
    """Weight a of |X S|^2, which is subtracted."""
    precision: Literal["float64", "float32"] = "float64"
    """Of the factorisation: float32 takes half the memory; on MovieLens-1M it errs by 2e-6 in S."""

    one_epoch: ClassVar[bool] = True

    def learner(self, dataset: Dataset, seed: int, device: torch.device) -> "EASELearner":
        return EASELearner(self, dataset, device)

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the factorisation."""
        return torch.float64 if self.precision == "float64" else torch.float32

    def common_weight(self, degree_V: np.ndarray, items: int) -> float | None:
        """Return c_u if it is that of all users with training items, else None; degrees as of `coefficients`."""
        weight_U = self.coefficients(degree_V[degree_V > 0], items)
        return float(weight_U[0]) if (weight_U == weight_U[0]).all() else None

    def matrix_bytes(self, items: int, workers: int, common: bool) -> tuple[int, int]:
        """Return the bytes that the first worker needs, with the columns of all workers, and those of each other.

        Args:
            items: items of the catalogue.
            workers: number of workers.
            common: whether all users have the same c_u; else X^T diag(c) X is held beside X^T X.
        """
        cells = items**2
        columns = 0 if workers == 1 and self.dtype == torch.float32 else 4 * cells
        return cells * self.dtype.itemsize * (1 if common else 2) + columns, columns // workers

    def needed_bytes(self, sizes: DataSizes, first: bool = True) -> dict[str, float]:
        common = self.common_weight(sizes.user_degrees, sizes.items) is not None
        matrices = self.matrix_bytes(sizes.items, sizes.workers, common)[0 if first else 1]
        return {"matrices of items": matrices, "interactions": 16.0 * sizes.interactions}


class EASELearner(ItemItemLearner):
    """The columns of S of one worker's items; implements `Learner`."""

    def __init__(self, config: EASE, dataset: Dataset, device: torch.device) -> None:
        super().__init__(dataset, device)
        self.config, self.items = config, self.partitions[ITEMS].rows
        self.dtype = config.dtype
        self.weights_XV = torch.empty(self.items, 0, device=device)  # X: all items

    def summary(self) -> str:
        first, other = (f"{needed / _GIB:.2g} GiB" for needed in self.needed_bytes())
        others = f", {other} at each other" if self.exchange.workers > 1 else ""
        return f"EASE: {self._plan()}, {first} at the first worker{others}"

    def _plan(self) -> str:
        what = "2 dense matrices" if self._two_matrices else "a dense matrix"
        return f"{what} of {self.items:,} x {self.items:,} {self.config.precision}"

    @property
    def _two_matrices(self) -> bool:
        """Whether c_u differs by user, so that X^T diag(c) X is held beside X^T X."""
        return self._common_weight() is None

    def _common_weight(self) -> float | None:
        """Return c_u if it is that of all users with training items, else None."""
        return self.config.common_weight(self.dataset.user_degrees(), self.items)

    def needed_bytes(self) -> tuple[int, int]:
        """Return the bytes that the first worker needs, with the columns of all workers, and those of each other."""
        return self.config.matrix_bytes(self.items, self.exchange.workers, not self._two_matrices)

    def check_memory(self) -> None:
        """Raise UserError at all workers if one has too little memory. Collective."""
        needed, free = self.needed_bytes()[min(1, self.rank)], free_memory(self.device)
        lacks = torch.tensor(0 if free is None else needed - free, device=self.device)
        if (lacking := int(self.exchange.all_max(lacks))) > 0:
            halves = "set model.precision=float32, or " if self.dtype == torch.float64 else ""
            raise UserError(
                f"{self.summary()}: {lacking / _GIB:,.2f} GiB more than are free; {halves}use a model whose memory "
                "does not grow with the square of the items, such as ials or itemknn"
            )

    def fit(self) -> float:
        """Solve at the first worker, and distribute the columns. Return the objective at the first worker."""
        self.check_memory()
        solution = torch.empty(0, 0, dtype=self.dtype, device=self.device)
        objective = 0.0
        with self.timed("compute"):
            if self.rank == 0:
                solution, objective = self._solve()
        if self.exchange.all_sum([float(np.isnan(objective))])[0]:
            raise UserError(f"EASE: X^T X + lam Id is singular in {self.config.precision}: raise model.regularization")
        with self.timed("exchange"):
            self.weights_XV = self._own_columns(solution)
        return objective

    def _solve(self) -> tuple[Tensor, float]:
        """Return (S, objective); the objective is NaN if the problem is singular."""
        config, user_items = self.config, self.all_user_items()
        item_users = group(
            user_items[1], np.repeat(np.arange(len(user_items[0]) - 1), np.diff(user_items[0])), self.items
        )
        weight_U = config.coefficients(np.diff(user_items[0]), self.items)
        common = self._common_weight()
        stage("EASE: co-occurrences of items")
        gram_XX = self._cooccurrences(item_users, user_items, np.ones(len(weight_U)))
        weighted_XX = self._cooccurrences(item_users, user_items, weight_U) if common is None else None
        stage(f"EASE: inverting {self._plan()}")
        return solve_(gram_XX, weighted_XX, config.regularization, config.prediction_discount, common or 1.0)

    def _cooccurrences(self, item_users: Csr, user_items: Csr, weight_U: np.ndarray) -> Tensor:
        """Return X^T diag(weight) X."""
        matrix_XX = torch.empty(self.items, self.items, dtype=self.dtype, device=self.device)
        weight_U = weight_U.astype(self.config.precision)
        for rows in blocks(self.items, self.items):
            matrix_XX[rows] = torch.from_numpy(cooccurrences(item_users, rows, user_items, weight_U, self.items))
            share(rows.stop / self.items)
        return matrix_XX

    def _own_columns(self, solution_XX: Tensor) -> Tensor:
        """Return the columns of S of this worker's items, float32. S is read at the first worker."""
        if self.exchange.workers == 1:
            return solution_XX.float()
        own_V = torch.from_numpy(self.partitions[ITEMS].rows_of(self.rank)).to(self.device)
        weights_XV = torch.empty(self.items, len(own_V), device=self.device)
        for rows in blocks(self.items, self.items):
            block_RX = torch.empty(rows.stop - rows.start, self.items, device=self.device)
            if self.rank == 0:
                block_RX.copy_(solution_XX[rows])
            weights_XV[rows] = self.exchange.broadcast(block_RX, 0)[:, own_V]
        return weights_XV

    def own_scores(self, lists: Csr, own_V: np.ndarray) -> Tensor:
        listed_AX = SparseMatrix(*lists, np.ones(len(lists[1]), np.float32), self.items)
        return listed_AX.product(self.weights_XV)[:, to_device([own_V], self.device)[0]]

    def item_rows(self) -> Rows:
        return {"rows": self.weights_XV.T.cpu()}

    def restore(self, rows: Rows) -> None:
        columns_XV = rows["rows"].T  # maybe mapped from the file of the checkpoint
        self.weights_XV = torch.empty(columns_XV.shape, device=self.device).copy_(columns_XV)


def solve_(
    gram_XX: Tensor, weighted_XX: Tensor | None, regularization: float, discount: float, weight: float
) -> tuple[Tensor, float]:
    """Return (S, objective) of the class `EASE`; NaN where the matrix to invert is singular.

    With P = (X^T X + lam / (1 - a) Id)^-1 and A = X^T diag(c) X, S = (P A - P dMat(diag(P A) / diag P)) / (1 - a). If
    c_u = c for all users, A = c X^T X, and S = c (Id - P dMat(1 / diag P)) / (1 - a).

    Args:
        gram_XX: X^T X. Replaced by S in place.
        weighted_XX: A; None if all users have the same coefficient.
        regularization: lam.
        discount: a.
        weight: c, if all users have it.
    """
    items, ridge = len(gram_XX), regularization / (1 - discount)
    trace = gram_XX.diagonal().sum().item()
    gram_XX.diagonal().add_(ridge)
    if not invert_(gram_XX):
        return gram_XX, np.nan
    diagonal_X = gram_XX.diagonal().clone()
    if weighted_XX is None:
        fitted = trace + items * ridge - (1 / diagonal_X.double()).sum().item()
        objective = weight * trace - weight**2 / (1 - discount) * fitted  # the second is c tr(X^T X S)
        gram_XX.mul_(-weight / (1 - discount) / diagonal_X)
        gram_XX.diagonal().zero_()
        return gram_XX, objective
    slices = list(blocks(items, items))
    products_X = torch.cat([(gram_XX[rows] * weighted_XX[rows]).sum(1) for rows in slices])  # diag(P A): A is symmetric
    multiplier_X = products_X / diagonal_X
    objective = weighted_XX.diagonal().double().sum().item()
    for rows in slices:
        gram_XX[rows] = (gram_XX[rows] @ weighted_XX - gram_XX[rows] * multiplier_X) / (1 - discount)
    gram_XX.diagonal().zero_()
    for rows in slices:
        objective -= (gram_XX[rows] * weighted_XX[rows]).sum().item()
    return gram_XX, objective


def invert_(matrix_XX: Tensor) -> bool:
    """Replace a symmetric matrix by its inverse, without a copy. Return whether it is positive definite."""
    columns_XX = matrix_XX.mT  # in the order of LAPACK, which then works in place
    failed = torch.zeros((), dtype=torch.int32, device=matrix_XX.device)
    torch.linalg.cholesky_ex(columns_XX, out=(columns_XX, failed))
    if failed:
        return False
    torch.cholesky_inverse(columns_XX, out=columns_XX)
    return True
