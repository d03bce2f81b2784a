"""SimpleX: the user's row and the pooled rows of its history.

H: items of a history.
"""

import math
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from distrec.models.base import EmbeddingConfig, Model, ModelInputs, models
from distrec.sharding.table import ITEMS, USERS


@models.register("simplex")
class SimpleXConfig(EmbeddingConfig):
    """SimpleX (Mao et al., CIKM 2021): z_u = g u + (1 - g) V p_u, p_u pooled from the rows of training items of u;
    items are their rows."""

    pooling: Literal["mean", "user_attention", "self_attention"] = "mean"
    """p_u: mean; or the sum weighted by softmax over the history's items k of <q, tanh(K e_k + b)>, where q is the
    user's row (user_attention), or learned and the same for all users (self_attention)."""
    own_weight: float = Field(0.5, ge=0, le=1)
    """Weight g of the user's own row. With 1 the model is matrix factorisation."""
    history: int = Field(50, ge=1)
    """Items H of a history: of users with more, a sample that stays the same. A pair's positive may be among them."""

    reads = ("history",)

    def build(self) -> Model:
        return SimpleX(self)


class SimpleX(Model):
    def __init__(self, config: SimpleXConfig) -> None:
        super().__init__()
        self.pooling, self.own_weight = config.pooling, config.own_weight
        self.value = nn.Linear(config.dim, config.dim, bias=False)
        if config.pooling != "mean":
            self.key = nn.Linear(config.dim, config.dim)
        if config.pooling == "self_attention":
            self.query_D = nn.Parameter(torch.randn(config.dim) / math.sqrt(config.dim))

    def encode(self, inputs: ModelInputs) -> tuple[Tensor, Tensor]:
        users_UD, items_RD = inputs.users[USERS], inputs.items[ITEMS]
        pooled_UD = self.value(self._pooled(inputs, users_UD, items_RD))
        return self.own_weight * users_UD + (1 - self.own_weight) * pooled_UD, items_RD

    def _pooled(self, inputs: ModelInputs, users_UD: Tensor, items_RD: Tensor) -> Tensor:
        """Return p_u of each user, (U, D): zeros without a history."""
        assert inputs.history is not None
        if self.pooling == "mean":
            items_UHD, present_UH = inputs.history.items(items_RD)
            return items_UHD.sum(1) / present_UH.sum(1, keepdim=True).clamp(min=1)
        # The owner of an item computes its key once, and sends it beside its row.
        values_RX = torch.cat([items_RD, torch.tanh(self.key(items_RD))], 1)
        values_UHX, present_UH = inputs.history.items(values_RX)
        items_UHD, keys_UHD = values_UHX.chunk(2, 2)
        query_UD = self.query_D.expand_as(users_UD) if self.pooling == "self_attention" else users_UD
        # A finite mask: the softmax of a user without items would be NaN.
        score_UH = torch.einsum("uhd,ud->uh", keys_UHD, query_UD).masked_fill(~present_UH, -1e30)
        return torch.einsum("uh,uhd->ud", score_UH.softmax(1), items_UHD)
