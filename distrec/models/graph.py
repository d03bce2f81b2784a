"""The bipartite graph of training interactions, sharded: a worker holds the edges of the users that it owns.

E: edges of this worker, ordered by user; C: items that this worker's edges need, the columns of its adjacency.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from distrec.core.buffer_pool import empty
from distrec.kernels.sparse_matrix import SparseMatrix, SparseProduct
from distrec.sampling.source import BatchSource
from distrec.sharding.collectives import Exchange, LookupPlan
from distrec.sharding.differentiable import StepExchange


@dataclass(frozen=True)
class Graph:
    """The normalised adjacency A = D^-1/2 X D^-1/2 of users and items, as two linear maps between their rows.

    Items without training interactions have no edge. With one worker the columns are all items, and nothing is copied.
    """

    plan: LookupPlan
    """Look-up of the columns."""
    adjacency: SparseMatrix
    """Weight 1 / sqrt(d_u d_i) of each edge, (owned users, C)."""
    transposed: SparseMatrix
    own_items: int
    exchange: StepExchange

    @classmethod
    def build(cls, source: BatchSource, own_items: int, exchange: Exchange) -> "Graph":
        """Return the graph of a worker. Collective."""
        indptr, items_E = source.interactions_csr
        items_C, splits_W, index_E = source.lookup(items_E)
        if exchange.workers == 1:
            index_E, items_C, splits_W = items_C[index_E], np.arange(own_items, dtype=np.int32), np.array([own_items])
        user_degree = np.repeat(np.diff(indptr), np.diff(indptr))
        weight_E = 1 / np.sqrt(user_degree * source.dataset.item_degrees()[items_E].astype(float))
        adjacency = SparseMatrix(
            indptr.astype(np.int64), index_E.astype(np.int32), weight_E.astype(np.float32), len(items_C)
        )
        plan = exchange.plan_lookup(items_C, splits_W.tolist()).result()
        return cls(plan, adjacency, adjacency.transposed(), own_items, StepExchange(exchange))

    def within(self, exchange: StepExchange) -> "Graph":
        """Return the graph with the collectives of one step."""
        return replace(self, exchange=exchange)

    def to_users(
        self,
        items_VD: Tensor,
        users_U: Tensor | None = None,
        columns_U: Tensor | None = None,
        exact: bool = False,
    ) -> Tensor:
        """Return A times the rows of all items, at the owners of the users: (V items, D) -> (V users, D).

        Args:
            items_VD: rows of this worker's items.
            users_U: users whose result is needed, (U, D); not differentiable.
            columns_U: columns whose items have rows other than zero; not differentiable.
            exact: do not round the rows where `train.send_bfloat16` rounds them.
        """
        items_CD = self.fetch(items_VD, exact)
        if columns_U is not None:
            return self.adjacency.product(items_CD.index_select(0, columns_U), columns_U=columns_U)
        if users_U is not None:
            return self.adjacency.product(items_CD, users_U)
        users_VD: Tensor = SparseProduct.apply(self.adjacency, self.transposed, items_CD)  # type: ignore[no-untyped-call]
        return users_VD

    def to_items(self, users_VD: Tensor, users_U: Tensor | None = None, columns_U: Tensor | None = None) -> Tensor:
        """Return A^T times the rows of all users, at the owners of the items: (V users, D) -> (V items, D).

        Args:
            users_VD: rows of this worker's users.
            users_U: the users of these rows, (U, D), where the others have zeros; not differentiable.
            columns_U: columns of the items whose result is needed; it is zero at the others. Not differentiable.
        """
        if users_U is not None:
            return self.sum(self.transposed.product(users_VD, columns_U=users_U))
        if columns_U is not None:
            partial_UD = self.transposed.product(users_VD, columns_U)
            return self.sum(spread(partial_UD, columns_U, self.adjacency.columns))
        partial_CD = SparseProduct.apply(self.transposed, self.adjacency, users_VD)  # type: ignore[no-untyped-call]
        return self.sum(partial_CD)

    def fetch(self, items_VD: Tensor, exact: bool = False) -> Tensor:
        """Return the rows of the columns from the owners of the items: (V, D) -> (C, D)."""
        rows_RD = items_VD if self._holds_all else items_VD.index_select(0, self.plan.rows_R)
        return self.exchange.fetch(self.plan, rows_RD, exact=exact)[0]

    def sum(self, partial_CD: Tensor) -> Tensor:
        """Return the sums of all workers' rows of the columns, at the owners of the items: (C, D) -> (V, D)."""
        (sums_RD,) = self.exchange.sum_at_owners(self.plan, partial_CD)
        if self._holds_all:
            return sums_RD
        return sums_RD.new_zeros(self.own_items, sums_RD.shape[1]).index_copy(0, self.plan.rows_R, sums_RD)

    @torch.no_grad()
    def columns_of(self, items_R: Tensor) -> Tensor:
        """Return the columns whose items are among those that their owners name, ascending at W > 1. Collective.

        Args:
            items_R: local indices of items of this worker, distinct.
        """
        if self._holds_all:
            return items_R
        named_V1 = torch.zeros(self.own_items, 1, device=items_R.device).index_fill_(0, items_R, 1.0)
        return self.fetch(named_V1, exact=True)[:, 0].nonzero()[:, 0]

    @property
    def _holds_all(self) -> bool:
        return self.plan.row_index_A is None


def spread(rows_UD: Tensor, index_U: Tensor, length: int) -> Tensor:
    """Return rows at their distinct indices among `length` rows, zeros elsewhere; without a gradient."""
    return empty([length, rows_UD.shape[1]], rows_UD).zero_().index_copy_(0, index_U, rows_UD)
