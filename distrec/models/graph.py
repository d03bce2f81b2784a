"""The bipartite graph of training interactions, sharded: a worker holds the edges of the users that it owns.

E: edges of this worker, ordered by user.
"""

import warnings
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from distrec.sampling.source import BatchSource
from distrec.sharding.collectives import Exchange, LookupPlan
from distrec.sharding.device_copy import to_device
from distrec.sharding.differentiable import StepExchange

warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta state")


@dataclass(frozen=True)
class Graph:
    """The normalised adjacency A = D^-1/2 X D^-1/2 of users and items, as two linear maps between their rows."""

    plan: LookupPlan
    """Look-up of the distinct items of this worker's edges."""
    adjacency: Tensor
    """Weight 1 / sqrt(d_u d_i) of each edge, sparse CSR, (owned users, U)."""
    transposed: Tensor
    own_items: int
    """Items that this worker owns; those without training interactions have no edge."""
    exchange: StepExchange

    @classmethod
    def build(cls, source: BatchSource, own_items: int, exchange: Exchange) -> "Graph":
        """Return the graph of a worker. Collective."""
        indptr, items_E = source.interactions_csr
        items_U, splits_W, index_E = source.lookup(items_E)
        user_degree = np.repeat(np.diff(indptr), np.diff(indptr))
        weight_E = 1 / np.sqrt(user_degree * source.dataset.item_degrees()[items_E].astype(float))
        arrays = [indptr, index_E.astype(np.int64), weight_E.astype(np.float32)]
        crow, column_E, value_E = to_device(arrays, exchange.device)
        adjacency = torch.sparse_csr_tensor(
            crow, column_E, value_E, size=(len(indptr) - 1, len(items_U)), check_invariants=False
        )
        plan = exchange.plan_lookup(items_U, splits_W.tolist()).result()
        return cls(plan, adjacency, adjacency.t().to_sparse_csr(), own_items, StepExchange(exchange))

    def within(self, exchange: StepExchange) -> "Graph":
        """Return the graph with the collectives of one step."""
        return replace(self, exchange=exchange)

    def to_users(self, items_VD: Tensor) -> Tensor:
        """Return A times the rows of all items, at the owners of the users: (V items, D) -> (V users, D)."""
        (items_UD,) = self.exchange.fetch(self.plan, items_VD.index_select(0, self.plan.rows_R))
        users_VD: Tensor = _SparseProduct.apply(self.adjacency, self.transposed, items_UD)  # type: ignore[no-untyped-call]
        return users_VD

    def to_items(self, users_VD: Tensor) -> Tensor:
        """Return A^T times the rows of all users, at the owners of the items: (V users, D) -> (V items, D)."""
        partial_UD = _SparseProduct.apply(self.transposed, self.adjacency, users_VD)  # type: ignore[no-untyped-call]
        (sums_RD,) = self.exchange.sum_at_owners(self.plan, partial_UD)
        return sums_RD.new_zeros(self.own_items, sums_RD.shape[1]).index_copy(0, self.plan.rows_R, sums_RD)


class _SparseProduct(torch.autograd.Function):
    """Product of a constant sparse matrix, given with its transpose, and rows."""

    @staticmethod
    def forward(ctx: Any, matrix: Tensor, transposed: Tensor, rows: Tensor) -> Tensor:
        ctx.transposed = transposed
        return matrix @ rows

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[None, None, Tensor]:
        return None, None, ctx.transposed @ grad.contiguous()
