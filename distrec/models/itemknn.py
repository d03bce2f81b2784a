"""Item-based nearest neighbours: an item's score is the sum of its similarities to those items of the user that are
among its K nearest neighbours.

A worker finds the neighbours of the items that it owns, from all interactions.
"""

from typing import ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from distrec.core.status import share, stage
from distrec.data.dataset import Dataset
from distrec.models.base import DataSizes, SolverConfig, models
from distrec.models.solver import Csr, ItemItemLearner, blocks, cooccurrences
from distrec.sharding.checkpoint import Rows
from distrec.sharding.table import ITEMS

_NONE = -1
_LOWER = 2**32 - 1  # lower half of a key


@models.register("itemknn")
class ItemKNN(SolverConfig):
    """Item-based nearest neighbours by cosine over users (Deshpande and Karypis, TOIS 2004)."""

    neighbours: int = Field(100, ge=1)
    """Nearest neighbours K of each item."""
    shrink: float = Field(0.0, ge=0)
    """Added to the norms' product in the denominator of the cosine: similarities that few users support become less."""

    one_epoch: ClassVar[bool] = True

    def learner(self, dataset: Dataset, seed: int, device: torch.device) -> "ItemKNNLearner":
        return ItemKNNLearner(self, dataset, device)

    def needed_bytes(self, sizes: DataSizes, first: bool = True) -> dict[str, float]:
        neighbours = min(self.neighbours, sizes.items) * sizes.items / sizes.workers
        # Ids and similarities by item (12 bytes each), and by neighbour (12); the lists of all users at each worker.
        return {"neighbours": 24.0 * neighbours, "interactions": 8.0 * sizes.interactions}


class ItemKNNLearner(ItemItemLearner):
    """The nearest neighbours of one worker's items; implements `Learner`."""

    def __init__(self, config: ItemKNN, dataset: Dataset, device: torch.device) -> None:
        super().__init__(dataset, device)
        self.config, own = config, self.partitions[ITEMS].size(self.rank)
        k = min(config.neighbours, self.partitions[ITEMS].rows)
        self.restore({"neighbours": torch.full((own, k), _NONE), "similarities": torch.zeros(own, k)})

    def summary(self) -> str:
        return f"itemknn: {self.neighbours_VK.shape[1]} nearest neighbours of each item"

    def fit(self) -> float:
        """Find the neighbours of this worker's items. Nothing is minimised."""
        stage("itemknn: neighbours")
        user_items, items = self.all_user_items(), self.partitions[ITEMS]
        degree_V, ids = self.dataset.item_degrees().astype(np.float32), items.rows_of(self.rank)
        ones_U = np.ones(self.dataset.manifest.users, np.float32)
        with self.timed("compute"):
            for rows in blocks(len(ids), items.rows):
                counts_RV = torch.from_numpy(cooccurrences(self.item_users, rows, user_items, ones_U, items.rows))
                norms_RV = np.sqrt(np.outer(degree_V[ids[rows]], degree_V)) + np.float32(self.config.shrink)
                similarity_RV = torch.where(counts_RV > 0, counts_RV / torch.from_numpy(norms_RV), 0.0)
                similarity_RV[torch.arange(len(counts_RV)), torch.from_numpy(ids[rows])] = 0
                found = nearest(similarity_RV, self.neighbours_VK.shape[1])
                self.neighbours_VK[rows], self.similarities_VK[rows] = found
                share(rows.stop / len(ids))
        self._index_by_neighbour()
        return 0.0

    def _index_by_neighbour(self) -> None:
        """Arrange the similarities by neighbour: its row lists the own items that it is a neighbour of."""
        row, column = np.nonzero(self.neighbours_VK.numpy() != _NONE)
        neighbour, similarity = self.neighbours_VK.numpy()[row, column], self.similarities_VK.numpy()[row, column]
        order = np.argsort(neighbour, kind="stable")
        indptr = np.searchsorted(neighbour[order], np.arange(self.partitions[ITEMS].rows + 1))
        self._lists, self._values = (indptr, row[order]), similarity[order]

    def own_scores(self, lists: Csr, own_V: np.ndarray) -> Tensor:
        from distrec.kernels.numba.sparse_product import add_sparse_product  # importing numba takes 0.5 s

        scores_AV = np.zeros((len(lists[0]) - 1, len(self.neighbours_VK)), np.float32)
        add_sparse_product(
            lists, np.ones(self.partitions[ITEMS].rows, np.float32), self._lists, self._values, scores_AV
        )
        return torch.from_numpy(scores_AV[:, own_V]).to(self.device)

    def item_rows(self) -> Rows:
        return {"neighbours": self.neighbours_VK, "similarities": self.similarities_VK}

    def restore(self, rows: Rows) -> None:
        self.neighbours_VK, self.similarities_VK = rows["neighbours"].clone(), rows["similarities"].clone()
        self._index_by_neighbour()


def nearest(similarity_RV: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return (ids, similarities) of the k most similar items of each row, ties by ascending id; -1 and 0 where none is.

    Args:
        similarity_RV: float32, at least 0; 0 is no neighbour.
        k: at most V.
    """
    # Keys of 64 bits: the bits of a positive float ascend with its value, and the lower half descends with the id.
    ids_V = torch.arange(similarity_RV.shape[1])
    key_RV = similarity_RV.view(torch.int32).long().bitwise_left_shift_(32).add_(_LOWER - ids_V)
    key_RK = key_RV.topk(k).values
    similarity_RK = (key_RK >> 32).int().view(torch.float32)
    ids_RK = _LOWER - (key_RK & _LOWER)
    return ids_RK.masked_fill(similarity_RK == 0, _NONE), similarity_RK
