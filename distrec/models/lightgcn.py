"""LightGCN: the mean of the rows and of their propagations over the graph of training interactions."""

from dataclasses import dataclass

from pydantic import Field
from torch import Tensor

from distrec.models.base import EmbeddingConfig, Model, ModelInputs, models
from distrec.models.graph import Graph, spread
from distrec.sharding.table import ITEMS, USERS


@models.register("lightgcn")
class LightGCNConfig(EmbeddingConfig):
    """LightGCN (He et al., SIGIR 2020): the mean of layers 0 to K, where layer k + 1 of u is the sum over its items i
    of layer k of i / sqrt(d_u d_i), items likewise. Each step updates all rows."""

    layers: int = Field(3, ge=1)
    """Layers K of propagation."""

    reads = ("graph",)

    def build(self) -> Model:
        return LightGCN(self.layers)


class LightGCN(Model):
    def __init__(self, layers: int) -> None:
        super().__init__()
        self.layers = layers

    def encode(self, inputs: ModelInputs) -> tuple[Tensor, Tensor]:
        return self.encode_rows(inputs, None, None)

    def encode_rows(self, inputs: ModelInputs, users_U: Tensor | None, items_R: Tensor | None) -> tuple[Tensor, Tensor]:
        assert inputs.graph is not None
        columns_U = None if items_R is None else inputs.graph.columns_of(items_R)
        mean = MeanOfLayers(inputs.graph, self.layers, users_U, items_R, columns_U)
        rows = inputs.users[USERS], inputs.items[ITEMS]
        users_UD, items_RD = inputs.graph.exchange.linear_map(mean.forward, mean.transposed, *rows)
        return users_UD, items_RD


@dataclass(frozen=True)
class MeanOfLayers:
    """The linear map from all rows to the means of the layers of some users and items, and the transposed map.

    One function for all layers: none is kept for the backward pass, and means are computed of the selected rows alone.
    The last layer, and the first of the backward pass, visit only the edges of these rows.
    """

    graph: Graph
    layers: int
    users_U: Tensor | None
    """Users whose mean is needed; None: all."""
    items_R: Tensor | None
    columns_U: Tensor | None
    """Columns of the items whose mean any worker needs."""

    def forward(self, users_VD: Tensor, items_VD: Tensor) -> tuple[Tensor, Tensor]:
        """Return sum_k A^k / (K + 1), at the selected rows, of all rows."""
        scale = 1 / (self.layers + 1)
        users_UD, items_RD = _rows(users_VD, self.users_U) * scale, _rows(items_VD, self.items_R) * scale
        for _ in range(self.layers - 1):
            users_VD, items_VD = self.graph.to_users(items_VD), self.graph.to_items(users_VD)
            users_UD.add_(_rows(users_VD, self.users_U), alpha=scale)
            items_RD.add_(_rows(items_VD, self.items_R), alpha=scale)
        users_UD.add_(self.graph.to_users(items_VD, self.users_U), alpha=scale)
        items_RD.add_(_rows(self.graph.to_items(users_VD, columns_U=self.columns_U), self.items_R), alpha=scale)
        return users_UD, items_RD

    def transposed(self, users_UD: Tensor, items_RD: Tensor) -> tuple[Tensor, Tensor]:
        """Return the gradients of all rows, h <- A h + g, K times from h = g, given those of the selected rows."""
        users_UD, items_RD = users_UD / (self.layers + 1), items_RD / (self.layers + 1)
        items_VD = items_RD if self.items_R is None else spread(items_RD, self.items_R, self.graph.own_items)
        users_VD, items_VD = (
            self.graph.to_users(items_VD, columns_U=self.columns_U, exact=True),
            self.graph.to_items(users_UD, self.users_U),
        )
        _add(users_VD, users_UD, self.users_U)
        _add(items_VD, items_RD, self.items_R)
        for _ in range(self.layers - 1):
            users_VD, items_VD = self.graph.to_users(items_VD, exact=True), self.graph.to_items(users_VD)
            _add(users_VD, users_UD, self.users_U)
            _add(items_VD, items_RD, self.items_R)
        return users_VD, items_VD


def _rows(rows_VD: Tensor, index_U: Tensor | None) -> Tensor:
    return rows_VD if index_U is None else rows_VD.index_select(0, index_U)


def _add(rows_VD: Tensor, rows_UD: Tensor, index_U: Tensor | None) -> None:
    """Add to some rows in place; the indices are distinct."""
    if index_U is None:
        rows_VD.add_(rows_UD)
    else:
        rows_VD.index_add_(0, index_U, rows_UD)
