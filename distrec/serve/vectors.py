"""Scorers of given vectors, and of those of a model, which are computed once."""

from typing import Literal

import numpy as np
import torch
from torch import Tensor

from distrec.models.base import Scorer


class Vectors(Scorer):
    """Scores by vectors of some users, (U, D), and of all items, (V, D)."""

    def __init__(self, users_UD: Tensor, items_VD: Tensor, similarity: Literal["cosine", "dot"]) -> None:
        self.users_UD, self.items_VD, self.similarity = users_UD, items_VD, similarity

    def representations(self, users: np.ndarray) -> tuple[Tensor, Tensor]:
        return self.users_UD[torch.from_numpy(users).to(self.users_UD.device)], self.items_VD


class KeptVectors(Scorer):
    """The scores of a model, whose vectors are kept from the second call on: those of a graph take long to compute.

    The first call computes what it needs alone, as the only call of a command.
    """

    def __init__(self, scorer: Scorer, users: int) -> None:
        self._scorer, self._users, self._calls = scorer, users, 0
        self._all: tuple[Tensor, Tensor] | None = None
        self.similarity = scorer.similarity

    def representations(self, users: np.ndarray) -> tuple[Tensor, Tensor] | None:
        self._calls += 1
        if self._calls == 1 and self._all is None:
            return self._scorer.representations(users)
        if (found := self.all()) is None:
            return None
        return found[0][torch.from_numpy(users).to(found[0].device)], found[1]

    def scores(self, users: np.ndarray, items: np.ndarray, out_UV: Tensor) -> None:
        self._scorer.scores(users, items, out_UV)

    def all(self) -> tuple[Tensor, Tensor] | None:
        """Return the vectors of all users and of all items; None if the scores are not inner products."""
        if self._all is None:
            self._all = self._scorer.representations(np.arange(self._users))
        return self._all

    def items(self) -> Tensor | None:
        """Return the vectors of all items."""
        found = self._all or self._scorer.representations(np.arange(0))
        return None if found is None else found[1]
