"""MACR: scores times the popularity of the user and of the item, which the ranking takes out again."""

from typing import Literal

import torch
from torch import Tensor, nn

from distrec.models.base import EmbeddingConfig, Model, models


@models.register("macr")
class MACRConfig(EmbeddingConfig):
    """MACR (Wei et al., KDD 2021): training scores <u, i> sigmoid(p_u) sigmoid(p_i) with the logits p_u = <w, u> and
    p_i = <w', i>; the ranking is by (<u, i> - c) sigmoid(p_u) sigmoid(p_i). To train with the loss `macr`."""

    similarity: Literal["dot"] = "dot"
    """Similarity of a user and an item."""
    c: float = 1.0
    """Score c of an item that is merely popular; published 1 (PRISM paper), 30 to 40 (authors)."""

    logits = True

    def build(self) -> Model:
        return MACR(self.dim, self.c)


class MACR(Model):
    def __init__(self, dim: int, c: float) -> None:
        super().__init__()
        self.of_users, self.of_items, self.c = nn.Linear(dim, 1, bias=False), nn.Linear(dim, 1, bias=False), c

    def users(self, rows_UD: Tensor) -> Tensor:
        logit_U1 = self.of_users(rows_UD)
        weight_U1 = torch.sigmoid(logit_U1)
        # (<u, i> - c) sigmoid(p_u) sigmoid(p_i) is the dot product of [u, -c] sigmoid(p_u) and [i, 1] sigmoid(p_i).
        return torch.cat([rows_UD * weight_U1, logit_U1 if self.training else -self.c * weight_U1], 1)

    def items(self, rows_RD: Tensor) -> Tensor:
        logit_R1 = self.of_items(rows_RD)
        weight_R1 = torch.sigmoid(logit_R1)
        return torch.cat([rows_RD * weight_R1, logit_R1 if self.training else weight_R1], 1)
