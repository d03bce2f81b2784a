"""Implicit alternating least squares, plain and debiased: one iteration an epoch.

Users and items take turns: with one side fixed, the best row of each user or item is a ridge regression of D unknowns.
A worker solves for the rows that it owns, with the interactions of its users for the one side, of its items for the
other. It fetches those rows of the fixed side that occur in them, and the D x D Gram matrix is summed over the workers.

E: interactions of this worker's rows; P: interactions of a row.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor

from distrec.core.errors import UserError
from distrec.core.status import stage
from distrec.data.dataset import Dataset
from distrec.kernels.dispatch import has_kernel
from distrec.models.base import DataSizes, Emit, models
from distrec.models.solver import Csr, DebiasedConfig, SolverLearner
from distrec.sampling.batch import Batch
from distrec.sharding.checkpoint import load_shard, save_shard
from distrec.sharding.collectives import LookupPlan
from distrec.sharding.device_copy import to_device
from distrec.sharding.initialization import initializers
from distrec.sharding.partition import Partition
from distrec.sharding.table import ITEMS, USERS

_CELLS = 2**24  # values that the reference holds at a time
_GRAM_ROWS = 2**16


@models.register("ials")
class IALS(DebiasedConfig):
    """Implicit alternating least squares (Hu et al., ICDM 2008; regularisation of Rendle et al., RecSys 2022).

    Minimises sum_{u, i in I_u} (y_ui - 1)^2 + a0 sum_{u, i} y_ui^2 + sum_u lam_u |w_u|^2 + sum_i lam_i |h_i|^2 with
    y_ui = <w_u, h_i>, lam_u = lam (|I_u| + a0 |items|)^nu and lam_i = lam (|U_i| + a0 |users|)^nu. The debiased form
    has c_u ((y_ui - 1)^2 - a0 y_ui^2) in the first sum.
    """

    dim: int = Field(64, ge=1)
    """Dimension D of the factors."""
    unobserved_weight: float = Field(0.1, ge=0)
    """Weight a0 of all user-item pairs; below 1 if debiased."""
    regularization: float = Field(0.003, gt=0)
    """Strength lam of the L2 regularisation."""
    frequency_exponent: float = Field(1.0, ge=0)
    """Exponent nu by which regularisation grows with the interactions of a row: 1 is that of a mean over pairs, 0 that
    of Hu et al."""
    init_std: float = Field(0.1, gt=0)
    """Standard deviation of the initial factors, times sqrt(dim)."""

    @model_validator(mode="after")
    def _check_weight(self) -> Self:
        if self.debiased and self.unobserved_weight >= 1:
            raise ValueError(f"unobserved_weight={self.unobserved_weight:g} must be below 1 if debiased")
        return self

    def learner(self, dataset: Dataset, seed: int, device: torch.device) -> "ALSLearner":
        return ALSLearner(self, dataset, seed, device)

    def needed_bytes(self, sizes: DataSizes, first: bool = True) -> dict[str, float]:
        rows, workers = sizes.users + sizes.items, sizes.workers
        fetched = max(min(other, sizes.interactions / workers) for other in (sizes.users, sizes.items))
        return {
            "factors, and those of a new iteration": 4.0 * self.dim * (rows + max(sizes.users, sizes.items)) / workers,
            "fetched rows": 4.0 * self.dim * fetched * (2 if workers > 1 else 1),
            # Lists of items and users (8 bytes an interaction), their indices into the fetched rows (8), indptr.
            "interactions in both orders": (16.0 * sizes.interactions + 24 * rows) / workers,
        }

    @property
    def share(self) -> float:
        """Factor of c_u in the normal matrix: 1 - a0 in the debiased form."""
        return 1 - self.unobserved_weight if self.debiased else 1.0

    def ridge(self, degree_R: np.ndarray, others: int) -> np.ndarray:
        """Return the regularisation of rows with these numbers of interactions, float64."""
        ridge_R: np.ndarray = (degree_R + self.unobserved_weight * others) ** self.frequency_exponent
        return self.regularization * ridge_R


@dataclass(frozen=True)
class _Side:
    """The regressions for this worker's users, or for its items."""

    lists: Csr
    """Index into the fetched rows of the other side, int32, of each interaction of each row."""
    plan: LookupPlan
    """Look-up of these rows."""
    coefficients: tuple[np.ndarray, np.ndarray]
    """The coefficient of an interaction is that of this side's row, (R,), times that of the other's, (U,)."""
    ridge_R: np.ndarray


class ALSLearner(SolverLearner):
    """Factors of one worker's users and items; implements `Learner`."""

    def __init__(self, config: IALS, dataset: Dataset, seed: int, device: torch.device) -> None:
        super().__init__(dataset, device)
        self.config = config
        init = initializers["normal"].model_validate({"std": config.init_std / config.dim**0.5})
        self.rows = {
            entity: init.rows(seed, entity, partition, self.rank, config.dim).to(device)
            for entity, partition in self.partitions.items()
        }

    def describe(self) -> str:
        form = "debiased " if self.config.debiased else ""
        return f"{form}iALS: an epoch is one iteration, users then items; each row is solved for exactly, in float32"

    def train_epoch(self, epoch: int, first_step: int, batches: Iterator[Batch], emit: Emit) -> float:
        """Solve for all users, then for all items. Return this worker's share of the objective."""
        stage("iALS: users")
        self.half_step(USERS)
        stage("iALS: items")
        gain = self.half_step(ITEMS)
        # At the minimum over the items, the terms of item i without regularisation of users are sum_u c_u - b_i^T h_i.
        side, norm2_R = self._sides[USERS], self.rows[USERS].double().square().sum(1).cpu().numpy()
        return float((side.coefficients[0] * np.diff(side.lists[0]) + side.ridge_R * norm2_R).sum() - gain)

    def half_step(self, entity: str) -> float:
        """Solve for this worker's users or items, given the other side. Return the sum of b^T x. Collective.

        Raises:
            UserError: a system is singular in float32.
        """
        side, others_VD = self._sides[entity], self.rows[USERS if entity == ITEMS else ITEMS]
        with self.timed("exchange"):
            gram_DD = self.exchange.all_add(gram(others_VD))
            others_UD = self.exchange.fetch(side.plan, others_VD.index_select(0, side.plan.rows_R))
        with self.timed("compute"):
            gram_DD = (self.config.unobserved_weight * gram_DD).to(others_UD.dtype)
            system = side.coefficients, gram_DD, side.ridge_R, self.config.share
            rows_RD, gain_R = solve_rows(side.lists, others_UD, *system)
        if singular := self.exchange.all_sum([float(np.isnan(gain_R).sum())])[0]:
            raise UserError(f"iALS: the systems of {singular:.0f} {entity} are singular: raise model.regularization")
        self.rows[entity] = rows_RD
        return float(gain_R.sum())

    @cached_property
    def _sides(self) -> dict[str, _Side]:
        """The regressions of users and of items. The first use is collective."""
        weight_V = self.config.coefficients(self.dataset.user_degrees(), self.partitions[ITEMS].rows)
        ones_V = np.ones(self.partitions[ITEMS].rows)
        return {
            USERS: self._side(self.user_items, USERS, ITEMS, weight_V, ones_V),
            ITEMS: self._side(self.item_users, ITEMS, USERS, ones_V, weight_V),
        }

    def _side(self, lists: Csr, entity: str, other: str, own_V: np.ndarray, other_V: np.ndarray) -> _Side:
        own, others = self.partitions[entity], self.partitions[other]
        ids_U, splits_W, index_E = requests(lists[1], others)
        plan = self.exchange.plan_lookup(others.local(ids_U).astype(np.int32), splits_W.tolist()).result()
        coefficients = own_V[own.rows_of(self.rank)], other_V[ids_U]
        return _Side((lists[0], index_E), plan, coefficients, self.config.ridge(np.diff(lists[0]), others.rows))

    def representations(self, users: np.ndarray) -> tuple[Tensor, Tensor]:
        return self.rows[USERS].index_select(0, *to_device([users], self.device)), self.rows[ITEMS]

    def save(self, folder: Path, meta: dict[str, Any]) -> None:
        tables = {entity: {"rows": rows_VD.cpu()} for entity, rows_VD in self.rows.items()}
        save_shard(folder, self.rank, self.partitions, tables, meta, {})

    def load(self, folder: Path) -> dict[str, Any]:
        tables, meta, _ = load_shard(folder, self.rank, self.partitions)
        for entity, rows in tables.items():
            self.rows[entity].copy_(rows["rows"])
        return meta


def requests(ids_E: np.ndarray, partition: Partition) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (distinct ids by owner and local index, their number by owner, index of each id among them, int32)."""
    occurs_V = np.zeros(partition.rows, bool)
    occurs_V[ids_E] = True
    ids_U = np.flatnonzero(occurs_V)
    owner_U = partition.owner(ids_U)
    ids_U = ids_U[np.argsort(owner_U, kind="stable")]  # local indices ascend with the ids of an owner
    index_V = np.zeros(partition.rows, np.int32)
    index_V[ids_U] = np.arange(len(ids_U), dtype=np.int32)
    return ids_U, np.bincount(owner_U, minlength=partition.workers), index_V[ids_E]


def gram(rows_VD: Tensor) -> Tensor:
    """Return the Gram matrix of rows, (D, D), in float64: so the rounding of its parts does not show."""
    gram_DD = rows_VD.new_zeros(rows_VD.shape[1], rows_VD.shape[1], dtype=torch.float64)
    for part_VD in torch.split(rows_VD, _GRAM_ROWS):
        gram_DD.addmm_(part_VD.double().T, part_VD.double())
    return gram_DD


def solve_rows(
    lists: Csr,
    others_UD: Tensor,
    coefficients: tuple[np.ndarray, np.ndarray],
    gram_DD: Tensor,
    ridge_R: np.ndarray,
    share: float,
) -> tuple[Tensor, np.ndarray]:
    """Solve ( share sum_p c_p y_p y_p^T + G + ridge_r Id ) x = b = sum_p c_p y_p for each row r, p its interactions.

    Args:
        lists: index of y_p among the rows of the other side.
        others_UD: these rows.
        coefficients: c_p is that of the row, (R,), times that of y_p, (U,).
        gram_DD: G.
        ridge_R: ridge of each row.
        share: factor of the first sum.

    Returns:
        (solutions, (R, D); b^T x of each, (R,) float64, NaN where the matrix is not positive definite).
    """
    if has_kernel(others_UD):
        from distrec.kernels.numba import normal_equations as kernel  # importing numba takes 0.5 s

        return kernel.solve_rows(lists, others_UD, coefficients, gram_DD, ridge_R, share)
    return solve_rows_reference(lists, others_UD, coefficients, gram_DD, ridge_R, share)


def solve_rows_reference(
    lists: Csr,
    others_UD: Tensor,
    coefficients: tuple[np.ndarray, np.ndarray],
    gram_DD: Tensor,
    ridge_R: np.ndarray,
    share: float,
) -> tuple[Tensor, np.ndarray]:
    """`solve_rows` by torch, for any device: rows in batches of like length, padded with a row of zeros."""
    (indptr, index_E), (unique, dim), device = lists, others_UD.shape, others_UD.device
    count_R, padded_E = np.diff(indptr), np.append(index_E, unique)
    others_UD = torch.cat([others_UD, others_UD.new_zeros(1, dim)])
    own_R, other_U, ridge = (
        to_device([a.astype(float)], device)[0].to(others_UD.dtype) for a in (*coefficients, ridge_R)
    )
    other_U = torch.cat([other_U, other_U.new_zeros(1)])
    rows_RD, gain_R = others_UD.new_empty(len(count_R), dim), np.empty(len(count_R))
    for rows in _batches(count_R, dim):
        position_P = np.arange(count_R[rows].max())
        listed_RP = np.where(position_P < count_R[rows, None], indptr[rows, None] + position_P, len(index_E))
        index_RP, r = to_device([padded_E[listed_RP].astype(np.int64), rows], device)
        y_RPD = others_UD[index_RP]
        weighted_RPD = (own_R[r, None] * other_U[index_RP])[:, :, None] * y_RPD
        matrix_RDD = torch.baddbmm(
            gram_DD + torch.diag_embed(ridge[r, None].expand(-1, dim)), weighted_RPD.mT, y_RPD, alpha=share
        )
        right_RD = weighted_RPD.sum(1)
        factor_RDD, failed_R = torch.linalg.cholesky_ex(matrix_RDD)
        rows_RD[r] = torch.cholesky_solve(right_RD[:, :, None], factor_RDD)[:, :, 0]
        gain = (right_RD.double() * rows_RD[r].double()).sum(1).masked_fill(failed_R > 0, torch.nan)
        gain_R[rows] = gain.cpu().numpy()
    return rows_RD, gain_R


def _batches(count_R: np.ndarray, dim: int) -> Iterator[np.ndarray]:
    """Yield the rows in batches, ascending by number of interactions, so that a padded batch fits `_CELLS` values."""
    order, start = np.argsort(count_R, kind="stable"), 0
    while start < len(order):
        size = min(len(order) - start, max(1, _CELLS // dim**2))
        while size > 1 and size * dim * (dim + count_R[order[start + size - 1]]) > _CELLS:
            size //= 2
        yield order[start : start + size]
        start += size
