"""Popularity: every user is recommended the items with the most training interactions."""

from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from distrec.data.dataset import Dataset
from distrec.models.base import DataSizes, SolverConfig, models
from distrec.models.solver import OnePassLearner
from distrec.sharding.checkpoint import Rows
from distrec.sharding.table import ITEMS


@models.register("pop")
class Pop(SolverConfig):
    """Popularity: an item's score is its number of training interactions."""

    one_epoch: ClassVar[bool] = True

    def learner(self, dataset: Dataset, seed: int, device: torch.device) -> "PopLearner":
        return PopLearner(dataset, device)

    def needed_bytes(self, sizes: DataSizes, first: bool = True) -> dict[str, float]:
        return {"degrees of items": 8.0 * sizes.items}


class PopLearner(OnePassLearner):
    """The numbers of training interactions of one worker's items; implements `Learner`."""

    def __init__(self, dataset: Dataset, device: torch.device) -> None:
        super().__init__(dataset, device)
        self.counts_V1 = torch.zeros(self.partitions[ITEMS].size(self.rank), 1, device=device)

    def summary(self) -> str:
        return "popularity: counts of training interactions"

    def fit(self) -> float:
        """Count. Return the cross-entropy of the interactions under the distribution of items that they have."""
        degree_V = self.dataset.item_degrees()
        own_V = degree_V[self.partitions[ITEMS].rows_of(self.rank)].astype(np.float32)
        self.counts_V1 = torch.from_numpy(own_V)[:, None].to(self.device)
        seen = degree_V[degree_V > 0]
        return float(-(seen * np.log(seen / max(1, seen.sum()))).sum())

    def representations(self, users: np.ndarray) -> tuple[Tensor, Tensor]:
        """Return ones and counts: their product is the count."""
        return self.counts_V1.new_ones(len(users), 1), self.counts_V1

    def item_rows(self) -> Rows:
        return {"rows": self.counts_V1.cpu()}

    def restore(self, rows: Rows) -> None:
        self.counts_V1.copy_(rows["rows"])
