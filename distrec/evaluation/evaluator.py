"""Exact evaluation of a scorer over the users of all workers. Knows neither models nor solvers."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from distrec.data.dataset import Dataset, Part
from distrec.evaluation.catalogue import CATALOGUE_METRICS, catalogue_metrics
from distrec.evaluation.config import EvalConfig, no_similarity
from distrec.evaluation.diagnostics import Side, diagnostics, norm_correlation
from distrec.evaluation.metrics import ADDITIVE, METRICS, RankingSums, UserMetrics, exact_sum, user_metrics
from distrec.evaluation.per_user import MOST_USERS, PerUser, bootstrap, gather_users
from distrec.evaluation.ranking import Progress, UserItemPairs, rank, rank_scores
from distrec.evaluation.strata import ITEM_STRATA, USER_GROUPS, strata_by_degree
from distrec.models.base import Scorer
from distrec.models.scoring import l2_normalize
from distrec.sharding.collectives import Exchange
from distrec.sharding.partition import Partition


@dataclass(frozen=True)
class Evaluated(RankingSums):
    """The metrics on a part, and what else an evaluation finds."""

    diagnostics: Mapping[str, float] = field(default_factory=dict, compare=False)
    """Figures of the representations, by name: `eval.diagnostics`."""
    per_user: PerUser | None = field(default=None, compare=False)
    """Metrics of each user, if they were asked for and there are at most 2 million users."""


def evaluate_part(
    scorer: Scorer,
    dataset: Dataset,
    part: Part,
    config: EvalConfig,
    exchange: Exchange,
    progress: Progress = lambda share: None,
    per_user: bool = False,
) -> Evaluated:
    """Return the metrics on a part, over the users of all workers. Collective.

    Rankings exclude the items that a user had before the part: the training items, and for the test part also the
    validation items. Users without held-out items, or without training items (their rows are untrained), are left
    out and counted. Items without training interactions are left out of the rankings by `eval.untrained_items=exclude`;
    held-out interactions with them are counted, and are misses.

    Args:
        scorer: gives the scores or representations.
        dataset: the prepared data.
        part: the part whose interactions are relevant.
        config: what is measured.
        exchange: the group of workers.
        progress: called as the ranking proceeds.
        per_user: also return the metrics of each user.

    Raises:
        UserError: `eval.similarity` or `eval.magnitudes` asks for a similarity of a scorer that has no representations.
    """
    return _Evaluation(scorer, dataset, part, config, exchange, progress).run(per_user)


class _Evaluation:
    """One call of `evaluate_part`, whose arguments it takes."""

    def __init__(
        self,
        scorer: Scorer,
        dataset: Dataset,
        part: Part,
        config: EvalConfig,
        exchange: Exchange,
        progress: Progress,
    ) -> None:
        self.scorer, self.dataset, self.config, self.exchange = scorer, dataset, config, exchange
        self.progress, m = progress, dataset.manifest
        self.of_users, self.of_items = (Partition(n, m.buckets, exchange.workers) for n in (m.users, m.items))
        pairs = _local_pairs(dataset, part, self.of_users, exchange.rank)
        self.held_out, self.known, self.users = _held_out_of(pairs, part)
        self.degree_V = np.bincount(pairs[Part.TRAIN][0], minlength=self.of_users.size(exchange.rank))
        self.item_degrees = dataset.item_degrees()
        self.trained = self.item_degrees > 0
        excludes = config.untrained_items == "exclude" and not self.trained.all()
        self.candidates = self.trained if excludes else None
        self.base = scorer.ranking_similarity(config.similarity)

    def run(self, per_user: bool) -> Evaluated:
        config, exchange = self.config, self.exchange
        representations, sides = self._representations()
        ranked_UK = self._rank(representations, self.base)
        own = self._metrics(ranked_UK)
        values = dict(own.values)
        if config.magnitudes:
            values |= self._by_similarity(representations, own)
        user_U = self.of_users.row(self.users[own.row_U], exchange.rank)
        group_U = strata_by_degree(self.dataset.user_degrees())[user_U] if config.strata else None
        of_groups = {} if group_U is None else _by_group(own.values, group_U)
        sums = self._sum(own, values | of_groups, group_U)
        names = [name for name in config.metrics if name in CATALOGUE_METRICS]
        others = catalogue_metrics(ranked_UK, config.k, names, self.item_degrees, self.candidates, exchange)
        if config.magnitudes:
            others |= _of_sides(norm_correlation, sides, exchange)
        table = None
        if (per_user or config.bootstrap) and self.dataset.manifest.users <= MOST_USERS:
            table = gather_users(user_U, values | of_groups, exchange)
            if config.bootstrap and len(table.user_U):
                others |= bootstrap(table.values, config.bootstrap)
            table = PerUser(table.user_U, {name: table.values[name] for name in values})
        found = _of_sides(diagnostics, sides, exchange) if config.diagnostics else {}
        return Evaluated(**vars(sums) | {"others": others, "diagnostics": found, "per_user": table})

    def _representations(self) -> tuple[tuple[Tensor, Tensor] | None, list[Side]]:
        """Return representations of the users to evaluate and of the items, None if the scorer has none; and the sides
        to measure, for which representations of all users are needed."""
        rank, config, sides = self.exchange.rank, self.config, []
        measured = config.diagnostics or config.magnitudes
        everyone = np.arange(self.of_users.size(rank))
        found = self.scorer.representations(everyone if measured else self.users)
        if found is None:
            if config.similarity != "model":
                raise no_similarity("similarity", config.similarity, "model")
            if config.magnitudes:
                raise no_similarity("magnitudes", "true", "false")
            return None, []
        users_UD, items_VD = found
        if measured:
            item_degree_V = self.item_degrees[self.of_items.rows_of(rank)]
            sides = [Side("users", users_UD, self.degree_V, self.of_users)]
            sides.append(Side("items", items_VD, item_degree_V, self.of_items))
            if len(self.users) < len(everyone):
                users_UD = users_UD.index_select(0, torch.from_numpy(self.users).to(users_UD.device))
        return (users_UD, items_VD), sides

    def _rank(self, representations: tuple[Tensor, Tensor] | None, similarity: str) -> np.ndarray:
        """Return the top-K items of the users, (U, k); see `rank`."""
        k = min(max(self.config.k), self.of_items.rows)
        lists = self.exchange, k, self.candidates, self.progress
        if representations is None:
            return rank_scores(self.scorer, self.users, self.known, self.of_items.rows, *lists)[1].numpy()
        if similarity == "cosine":
            with torch.no_grad():
                representations = l2_normalize(representations[0]), l2_normalize(representations[1])
        return rank(representations[0], self.known, representations[1], self.of_items, *lists)[1].numpy()

    def _metrics(self, ranked_UK: np.ndarray, by_stratum: bool = True) -> UserMetrics:
        strata = None
        if self.config.strata and by_stratum:
            strata = strata_by_degree(self.item_degrees), ITEM_STRATA
        names = [name for name in self.config.metrics if name in METRICS]
        indptr = self.held_out.indptr(len(self.users))
        return user_metrics(ranked_UK, indptr, self.held_out.item, self.config.k, names, strata)

    def _by_similarity(self, representations: tuple[Tensor, Tensor] | None, own: UserMetrics) -> dict[str, np.ndarray]:
        """Return the metrics by `name@k/dot` and `name@k/cosine`. One of them is `own`."""
        other = "dot" if self.base == "cosine" else "cosine"
        of_other = self._metrics(self._rank(representations, other), by_stratum=False).values
        found = {f"{name}/{self.base}": own.values[name] for name in of_other}
        return found | {f"{name}/{other}": value_U for name, value_U in of_other.items()}

    def _sum(self, own: UserMetrics, values: dict[str, np.ndarray], group_U: np.ndarray | None) -> RankingSums:
        """Return the sums over the users of all workers."""
        groups = [] if group_U is None else np.bincount(group_U, minlength=len(USER_GROUPS)).tolist()
        counts = [len(own.row_U), int(own.relevant_U.sum()), int((~self.trained[self.held_out.item]).sum()), *groups]
        found = self.exchange.all_sum([*(exact_sum(value_U) for value_U in values.values()), *counts])
        sums = dict(zip(values, found, strict=False))
        users, relevant, untrained, *groups = (int(count) for count in found[len(values) :])
        of_groups = dict(zip(USER_GROUPS, groups, strict=False))
        return RankingSums(sums, users, self.of_users.rows - users, relevant, untrained, of_groups)


def _by_group(values: Mapping[str, np.ndarray], group_U: np.ndarray) -> dict[str, np.ndarray]:
    """Return the additive metrics by `name@k/group`, NaN for the users outside the group."""
    return {
        f"{name}/{group}": np.where(group_U == g, value_U, np.nan)
        for name, value_U in values.items()
        if name.partition("@")[0] in ADDITIVE and "/" not in name
        for g, group in enumerate(USER_GROUPS)
    }


def _of_sides(
    measure: Callable[[Side, Exchange], dict[str, float]], sides: list[Side], exchange: Exchange
) -> dict[str, float]:
    found: dict[str, float] = {}
    for side in sides:
        found |= measure(side, exchange)
    return found


def held_out_pairs(
    dataset: Dataset, part: Part, partition: Partition, worker: int
) -> tuple[UserItemPairs, UserItemPairs, np.ndarray]:
    """Return (held-out items, known items, local ids) of a worker's users to evaluate.

    Rows of the pairs index the local ids, which ascend.
    """
    return _held_out_of(_local_pairs(dataset, part, partition, worker), part)


Pairs = dict[Part, tuple[np.ndarray, np.ndarray]]
"""(local users, items) of a worker's users, by part."""


def _local_pairs(dataset: Dataset, part: Part, partition: Partition, worker: int) -> Pairs:
    """Return the interactions of a part and of those before it."""
    buckets = partition.owned_buckets(worker)
    parts = {p: dataset.interactions(p, buckets) for p in Part if p <= part}
    return {p: (partition.local(user), item) for p, (user, item) in parts.items()}


def _held_out_of(pairs: Pairs, part: Part) -> tuple[UserItemPairs, UserItemPairs, np.ndarray]:
    users = np.intersect1d(pairs[part][0], pairs[Part.TRAIN][0])
    return _pairs_of(users, [pairs[part]]), _pairs_of(users, [pairs[p] for p in pairs if p < part]), users


def _pairs_of(users: np.ndarray, parts: list[tuple[np.ndarray, np.ndarray]]) -> UserItemPairs:
    """Return the pairs of `users` (ascending local ids) in some (users, items), with rows that index `users`."""
    user, item = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    kept = np.isin(user, users)
    row, item = np.searchsorted(users, user[kept]), item[kept].astype(np.int64)
    order = np.lexsort((item, row))
    return UserItemPairs(row[order], item[order])
