"""Top-K lists of one worker's users by their codes: by the model, or the most popular items.

All workers make the same calls in the same order; with one worker nothing is exchanged.
"""

from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from distrec.core.errors import UserError
from distrec.data.dataset import Dataset
from distrec.evaluation.config import no_similarity
from distrec.evaluation.ranking import UserItemPairs, add_block_reference, rank, rank_scores
from distrec.evaluation.topk import topk_block
from distrec.models.base import Scorer, Similarity
from distrec.models.scoring import l2_normalize, l2_normalize_reference
from distrec.serve.candidates import Seen, SeenItems
from distrec.serve.lists import MODEL, POPULAR, Lists
from distrec.serve.vectors import Vectors
from distrec.sharding.collectives import Exchange
from distrec.sharding.partition import Partition

_FEW = 64  # users that are ranked in plain torch


class Ranker:
    """Ranks the items for this worker's users.

    Args:
        scorer: the model.
        exchange: the group of workers.
        dataset: the data of the run.
        similarity: `eval.similarity`.
    """

    def __init__(self, scorer: Scorer, exchange: Exchange, dataset: Dataset, similarity: Similarity) -> None:
        self.scorer, self.exchange, self.similarity, m = scorer, exchange, similarity, dataset.manifest
        self.users = Partition(m.users, m.buckets, exchange.workers)
        self.items = Partition(m.items, m.buckets, exchange.workers)
        self._dataset, self._seen = dataset, SeenItems(dataset)

    @cached_property
    def user_degrees(self) -> np.ndarray:
        """Training interactions of each user of the data."""
        return self._dataset.user_degrees()

    @cached_property
    def item_degrees(self) -> np.ndarray:
        """Training interactions of each item."""
        return self._dataset.item_degrees()

    def of_users(self, users: np.ndarray, k: int, seen: Seen, chosen_V: np.ndarray | None) -> Lists:
        """Return the lists of some users.

        Args:
            users: codes of users of this worker, ascending.
            k: length of the lists.
            seen: which of their items to leave out.
            chosen_V: items to rank, (items,) bool; None: all.
        """
        known, trained = self._seen.of(users, seen), self.user_degrees[users] > 0
        lists = Lists.empty(len(users), self.length(k))
        if trained.any() or self.exchange.workers > 1:
            local, of_trained = self.users.local(users[trained]), rows_of(known, trained)
            lists.set(trained, *self.rank(self.scorer, local, of_trained, k, chosen_V), MODEL)
        if not trained.all() or self.exchange.workers > 1:
            rows = int((~trained).sum())
            lists.set(~trained, *self.popular(rows, rows_of(known, ~trained), k, chosen_V), POPULAR)
        return lists

    def popular(
        self, rows: int, known: UserItemPairs, k: int, chosen_V: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return (training interactions, codes) of the items with the most, but those known to each row."""
        own_V1 = torch.from_numpy(self.item_degrees[self.items.rows_of(self.exchange.rank)]).double()[:, None]
        own_V1 = own_V1.to(self.exchange.device)
        return self.rank(Vectors(own_V1.new_ones(rows, 1), own_V1, "dot"), np.arange(rows), known, k, chosen_V, "dot")

    def rank(
        self,
        scorer: Scorer,
        users: np.ndarray,
        known: UserItemPairs,
        k: int,
        chosen_V: np.ndarray | None,
        similarity: Similarity | None = None,
        partition: Partition | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return (scores, codes) of the best items of some users by a scorer, (U, k) each.

        Args:
            scorer: a model, or vectors.
            users: local indices of its users.
            known: items to leave out.
            k: length of the lists, cut to the number of items.
            chosen_V: items to rank; None: all.
            similarity: as `eval.similarity`, which is the default.
            partition: of what is ranked; default: the items.
        """
        partition = partition or self.items
        k = min(at_least_one(k), partition.rows)
        found, similarity = scorer.representations(users), similarity or self.similarity
        if found is None:
            if similarity != "model":
                raise no_similarity("similarity", similarity, "model")
            scores, codes = rank_scores(scorer, users, known, partition.rows, self.exchange, k, chosen_V)
            return scores.numpy(), codes.numpy()
        few = len(users) <= _FEW and self.exchange.workers == 1
        if scorer.ranking_similarity(similarity) == "cosine":
            normalize = l2_normalize_reference if few else l2_normalize
            with torch.no_grad():
                found = normalize(found[0]), normalize(found[1])
        if few:
            return _rank_few(*found, known, k, chosen_V)
        scores, codes = rank(found[0], known, found[1], partition, self.exchange, k, chosen_V)
        return scores.numpy(), codes.numpy()

    def length(self, k: int) -> int:
        """Return the length of lists of items."""
        return min(at_least_one(k), self.items.rows)


def at_least_one(k: int) -> int:
    """Return the length of lists that is asked for. Raises UserError for one below 1."""
    if k < 1:
        raise UserError(f"k must be at least 1; got {k}")
    return k


def _rank_few(
    users_UD: Tensor, items_VD: Tensor, known: UserItemPairs, k: int, chosen_V: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Return what `rank` returns, in plain torch: an import of numba takes longer than to rank for a few users."""
    ids = np.arange(len(items_VD)) if chosen_V is None else np.flatnonzero(chosen_V)
    ids_V, known = torch.from_numpy(ids).to(items_VD.device), known.within(chosen_V)
    best = topk_block(users_UD.new_empty(len(users_UD), 0), ids_V[:0], k)
    with torch.no_grad():
        add_block_reference(best, users_UD, items_VD[ids_V], ids_V, known)
    return best[0].cpu().numpy(), best[1].cpu().numpy()


def rows_of(pairs: UserItemPairs, chosen: np.ndarray) -> UserItemPairs:
    """Return the pairs of chosen rows (a mask), numbered among these."""
    kept = pairs.select(chosen[pairs.row])
    return UserItemPairs((np.cumsum(chosen) - 1)[kept.row], kept.item)
