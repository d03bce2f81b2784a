"""Scores of users who were not in the training, from the items of their histories alone.

Where scores are products of a user's and an item's vector, the vector of a new user is the least-squares solution of
implicit feedback with the item vectors h_i fixed (Hu et al., ICDM 2008; weights of Rendle et al., RecSys 2022), over
the user's items I and all trained items V:

    w = argmin sum_{i in I} (1 - <w, h_i>)^2 + a0 sum_{i in V} <w, h_i>^2 + ridge |w|^2
      = (sum_{i in I} h_i h_i^T + a0 sum_{i in V} h_i h_i^T + ridge Id)^-1 sum_{i in I} h_i

For `ials`, a0 and ridge are those of the run, so w is the row that one more half step of the training would give. Other
models have no such weights: a0 = 0.1 and ridge = 0.003 (|I| + a0 |V|) m, m the mean of |h_i|^2, which makes w h_i
independent of the scale of the items. Item-item models score the history itself.
"""

import numpy as np
import torch
from torch import Tensor

from distrec.models.base import ModelConfig, Scorer
from distrec.models.ials import IALS, gram, solve_rows
from distrec.models.solver import Csr, ItemItemLearner

UNOBSERVED_WEIGHT, REGULARIZATION = 0.1, 0.003
"""a0 and the factor of the ridge, for models that define none: the defaults of `ials`."""


def fold_in(histories: Csr, items_VD: Tensor, trained_V: np.ndarray, config: ModelConfig) -> Tensor:
    """Return vectors of users with these histories, (users, D).

    Args:
        histories: item codes of each user, distinct.
        items_VD: vectors of all items by which they are ranked.
        trained_V: items with training interactions, (V,) bool.
        config: the model of the run.
    """
    counts, items_VD = np.diff(histories[0]), items_VD.float()
    trained_TD = items_VD[torch.from_numpy(np.flatnonzero(trained_V)).to(items_VD.device)]
    gram_DD = gram(trained_TD)
    if isinstance(config, IALS):
        weight, share = config.unobserved_weight, config.share
        ridge, own = config.ridge(counts, len(items_VD)), config.coefficients(counts, len(items_VD))
    else:
        mean_norm2 = gram_DD.trace().item() / max(1, len(trained_TD))
        weight, share, own = UNOBSERVED_WEIGHT, 1.0, np.ones(len(counts))
        ridge = REGULARIZATION * (counts + weight * len(trained_TD)) * mean_norm2
    system = (own, np.ones(len(items_VD))), (weight * gram_DD).to(items_VD.dtype), ridge, share
    lists = histories[0], histories[1].astype(np.int32)
    return solve_rows(lists, items_VD, *system)[0]


class HistoryScorer(Scorer):
    """The scores of an item-item model for users that are given by their items.

    Args:
        learner: the model, with one worker.
        histories: item codes of each user, ascending.
    """

    def __init__(self, learner: ItemItemLearner, histories: Csr) -> None:
        self._learner, self._histories = learner, histories

    def scores(self, users: np.ndarray, items: np.ndarray, out_UV: Tensor) -> None:
        indptr, indices = self._histories
        rows = [indices[indptr[user] : indptr[user + 1]] for user in users]
        lists = np.cumsum([0, *map(len, rows)]), np.concatenate([[], *rows]).astype(np.int32)
        out_UV.copy_(self._learner.own_scores(lists, items))
