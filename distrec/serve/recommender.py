"""A trained model in one process, asked by the ids of its users and items."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from distrec.core import columns
from distrec.core.errors import UserError
from distrec.core.status import stage
from distrec.evaluation.ranking import UserItemPairs
from distrec.models.base import Scorer
from distrec.models.solver import ItemItemLearner
from distrec.serve.candidates import NO_PAIRS, Seen, candidates, pairs_of
from distrec.serve.fold_in import HistoryScorer, fold_in
from distrec.serve.ids import UNKNOWN, Ids, as_list
from distrec.serve.lists import HISTORY, POPULAR, Lists, list_table
from distrec.serve.ranker import Ranker, rows_of
from distrec.serve.vectors import KeptVectors, Vectors
from distrec.training.evaluate import load_checkpoint, open_run


def load_model(run: str | Path, device: str = "cpu", note: Callable[[str], object] = warnings.warn) -> "Recommender":
    """Load the model of a run: its last checkpoint, or its best epoch by `train.watch`.

    Args:
        run: the run folder; any number of workers may have written it.
        device: where the model lies, `cpu` or `cuda`.
        note: called with a line on a checkpoint that is damaged, where another one is loaded.

    Raises:
        UserError: no run, no checkpoint, or data that are gone or have changed.
    """
    return Recommender(run, torch.device(device), note)


class Catalogue:
    """The users and items of a run, without its model."""

    def __init__(self, run: str | Path) -> None:
        self.folder, self.config, self.dataset = open_run(run)

    @cached_property
    def users(self) -> Ids:
        """The users of the data."""
        return Ids(self.dataset.user_ids())

    @cached_property
    def items(self) -> Ids:
        """The items of the data."""
        return Ids(self.dataset.item_ids())

    @cached_property
    def trained_V(self) -> np.ndarray:
        """Items with training interactions, (items,) bool."""
        trained_V: np.ndarray = self.dataset.item_degrees() > 0
        return trained_V

    def candidates(self, items: Sequence[Any] | None, exclude: Sequence[Any] | None) -> np.ndarray | None:
        """Return the items to rank, (items,) bool, by restrictions and `eval.untrained_items`; None: all.

        Raises:
            UserError: none of `items` is known.
        """
        trained_V = self.trained_V if self.config.eval.untrained_items == "exclude" else None
        return candidates(trained_V, self.items, items, exclude)


class Recommender(Catalogue):
    """A trained model with the ids of its users and items; `load_model` loads one.

    Answers are tables (`pyarrow.Table`; `.to_pandas()` converts) with a row for each item of each list, best first.
    """

    def __init__(self, run: str | Path, device: torch.device, note: Callable[[str], object]) -> None:
        super().__init__(run)
        loaded = load_checkpoint(self.folder, self.config, self.dataset, device, note)
        self.scorer, self.checkpoint = loaded.scorer, loaded.checkpoint
        self._kept = KeptVectors(loaded.scorer, self.dataset.manifest.users)
        self.ranker = Ranker(self._kept, loaded.exchange, self.dataset, self.config.eval.similarity)

    @property
    def similarity(self) -> str:
        """`dot` or `cosine`: the similarity that ranks."""
        return self.scorer.ranking_similarity(self.config.eval.similarity)

    def recommend(
        self,
        users: Any,
        k: int = 20,
        *,
        seen: Seen = "all",
        items: Sequence[Any] | None = None,
        exclude: Sequence[Any] | None = None,
    ) -> pa.Table:
        """Return the k best items of each user.

        Args:
            users: an id, or several.
            k: length of the lists. They are shorter where fewer items are left.
            seen: the user's items to leave out: those of `all` parts of the data, those of the `train` part, or `none`.
            items: recommend only these items; None: any.
            exclude: never recommend these items.

        Returns:
            Columns `user`, `rank` from 1, `item`, `score` and `source`: `model`, or `popular` for users without
            training interactions and users who are not in the data, to whom the items with the most training
            interactions are recommended, and their number is the score.

        Raises:
            UserError: k below 1, no id among `items` that is known.
        """
        wanted, chosen_V = as_list(users), self.candidates(items, exclude)
        code_W = self.users.codes(wanted)
        codes, index_W = np.unique(code_W, return_inverse=True)
        unknown, lists = codes == UNKNOWN, Lists.empty(len(codes), self.ranker.length(k))
        found = self.ranker.of_users(codes[~unknown], k, seen, chosen_V)
        assert found.source_R is not None
        lists.set(~unknown, found.scores_RK, found.codes_RK, found.source_R)
        if unknown.any():
            lists.set(unknown, *self.ranker.popular(1, NO_PAIRS, k, chosen_V), POPULAR)
        return list_table({"user": self.users.column(wanted)}, lists.take(index_W), self.items)

    def recommend_new(
        self,
        histories: Mapping[Any, Sequence[Any]],
        k: int = 20,
        *,
        include_seen: bool = False,
        items: Sequence[Any] | None = None,
        exclude: Sequence[Any] | None = None,
    ) -> pa.Table:
        """Return the k best items of users who are not in the data, from their items; nothing is trained.

        The user's vector is the least-squares solution of implicit feedback with the item vectors fixed; item-item
        models score the items directly (`distrec/serve/fold_in.py`).

        Args:
            histories: items of each new user, by any name. Unknown and untrained items have no effect.
            k: length of the lists.
            include_seen: recommend the items of the history too.
            items: recommend only these items; None: any.
            exclude: never recommend these items.

        Returns:
            The columns of `recommend`; `source` is `history`, or `popular` for users without a trained item.

        Raises:
            UserError: the scores of the model are neither products of vectors nor sums over a history.
        """
        names, rows = list(histories), []
        for row, history in enumerate(histories.values()):
            codes = self.items.codes(as_list(history))
            codes = codes[(codes != UNKNOWN) & self.trained_V[codes]]
            rows.append((np.full(len(codes), row), codes))
        pairs, users = pairs_of(rows), len(names)
        has_R = np.bincount(pairs.row, minlength=users) > 0
        known, chosen_V = NO_PAIRS if include_seen else pairs, self.candidates(items, exclude)
        lists = Lists.empty(users, self.ranker.length(k))
        if has_R.any():
            stage("computing the vectors of new users")
            scorer, own = self._new_users(rows_of(pairs, has_R), int(has_R.sum())), np.arange(has_R.sum())
            lists.set(has_R, *self.ranker.rank(scorer, own, rows_of(known, has_R), k, chosen_V), HISTORY)
        if not has_R.all():
            lists.set(~has_R, *self.ranker.popular(int((~has_R).sum()), NO_PAIRS, k, chosen_V), POPULAR)
        return list_table({"user": columns.texts([str(name) for name in names])}, lists, self.items)

    def similar_items(self, items: Any, k: int = 20) -> pa.Table:
        """Return the k items most similar to each item: by the cosine of their vectors, or by the score that the item
        alone gives in an item-item model.

        Returns:
            Columns `item`, `rank`, `similar` and `score`.

        Raises:
            UserError: an item is unknown, or the model's scores are neither.
        """
        wanted = as_list(items)
        codes = self._known_codes(self.items, wanted, "item")
        itself, own = UserItemPairs(np.arange(len(codes)), codes), np.arange(len(codes))
        chosen_V = self.candidates(None, None)
        if isinstance(self.scorer, ItemItemLearner):
            alone = HistoryScorer(self.scorer, (np.arange(len(codes) + 1), codes))
            found = self.ranker.rank(alone, own, itself, k, chosen_V, "model")
        else:
            found = self.ranker.rank(_of_rows(self.item_vectors(), codes), own, itself, k, chosen_V, "cosine")
        return list_table({"item": self.items.column(wanted)}, Lists.of(*found), self.items, "similar")

    def similar_users(self, users: Any, k: int = 20) -> pa.Table:
        """Return the k users most similar to each user by the cosine of their vectors.

        Returns:
            Columns `user`, `rank`, `similar` and `score`.

        Raises:
            UserError: a user is unknown or has no training interactions, or the model has no vectors of users.
        """
        wanted = as_list(users)
        codes = self._known_codes(self.users, wanted, "user")
        trained_V = self.ranker.user_degrees > 0
        if not trained_V[codes].all():
            raise UserError(f"user {wanted[int(np.argmin(trained_V[codes]))]!r} has no training interactions")
        scorer, own = _of_rows(self.user_vectors(), codes), np.arange(len(codes))
        itself = UserItemPairs(own, codes)
        found = self.ranker.rank(scorer, own, itself, k, trained_V, "cosine", self.ranker.users)
        return list_table({"user": self.users.column(wanted)}, Lists.of(*found), self.users, "similar")

    def user_vectors(self) -> Tensor:
        """Return the vectors of all users by code, (users, D). Raises UserError if the model has none."""
        return self._vectors()[0]

    def item_vectors(self) -> Tensor:
        """Return the vectors of all items by code, (items, D). Raises UserError if the model has none."""
        return self._vectors()[1]

    def vectors(self) -> tuple[Tensor, Tensor] | None:
        """Return the vectors of all users and of all items by code; None if scores are not inner products."""
        return self._kept.all()

    def _vectors(self) -> tuple[Tensor, Tensor]:
        if (found := self.vectors()) is None:
            raise UserError(f"model.name={self.config.model.name} has no vectors: its scores are not inner products")
        return found

    def _new_users(self, pairs: UserItemPairs, users: int) -> Scorer:
        """Return the scorer of new users with these items."""
        histories = pairs.indptr(users), pairs.item
        if isinstance(self.scorer, ItemItemLearner):
            return HistoryScorer(self.scorer, histories)
        if (items_VD := self._kept.items()) is None:
            raise UserError(
                f"model.name={self.config.model.name} cannot recommend to new users: its scores are neither products "
                "of vectors nor sums over the items of a history; train again with these users"
            )
        ranking_VD = torch.nn.functional.normalize(items_VD, dim=1) if self.similarity == "cosine" else items_VD
        users_UD = fold_in(histories, ranking_VD, self.trained_V, self.config.model)
        return Vectors(users_UD, items_VD, self.scorer.similarity)

    @staticmethod
    def _known_codes(known: Ids, wanted: list[Any], what: str) -> np.ndarray:
        codes = known.codes(wanted)
        if unknown := [value for value, code in zip(wanted, codes, strict=True) if code == UNKNOWN]:
            raise UserError(f"no {what} {unknown[0]!r} in the data of the run")
        return codes


def _of_rows(vectors_VD: Tensor, rows: np.ndarray) -> Vectors:
    """Return the scorer that compares some of the rows with all of them."""
    return Vectors(vectors_VD[torch.from_numpy(rows).to(vectors_VD.device)], vectors_VD, "dot")
