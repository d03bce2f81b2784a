"""Exact evaluation of a scorer over the users of all workers. Knows neither models nor solvers."""

from collections.abc import Iterable

import numpy as np
import torch

from distrec.core.errors import UserError
from distrec.data.dataset import Dataset, Part
from distrec.evaluation.config import EvalConfig
from distrec.evaluation.metrics import RankingSums, ranking_sums
from distrec.evaluation.ranking import UserItemPairs, rank, rank_scores
from distrec.models.base import Scorer
from distrec.models.scoring import l2_normalize
from distrec.sharding.collectives import Exchange
from distrec.sharding.partition import Partition


def evaluate_part(scorer: Scorer, dataset: Dataset, part: Part, config: EvalConfig, exchange: Exchange) -> RankingSums:
    """Return the metrics on a part, over the users of all workers. Collective.

    Rankings exclude the items that a user had before the part: the training items, and for the test part also the
    validation items. Users without held-out items, or without training items (their rows are untrained), are left
    out and counted.

    Raises:
        UserError: `eval.similarity` asks for a similarity of a scorer that has no representations.
    """
    m = dataset.manifest
    held_out, known, users = held_out_pairs(
        dataset, part, Partition(m.users, m.buckets, exchange.workers), exchange.rank
    )
    items, k = Partition(m.items, m.buckets, exchange.workers), min(max(config.k), m.items)
    ranked_UK = _rank(scorer, users, known, items, config.similarity, exchange, k)
    own = ranking_sums(ranked_UK, held_out.indptr(len(users)), held_out.item, config.k)
    *sums, ranked = exchange.all_sum([*own.sums.values(), own.users])
    return RankingSums(dict(zip(own.sums, sums, strict=True)), int(ranked), m.users - int(ranked))


def _rank(
    scorer: Scorer,
    users: np.ndarray,
    known: UserItemPairs,
    items: Partition,
    similarity: str,
    exchange: Exchange,
    k: int,
) -> np.ndarray:
    """Return the top-K items of some users, (U, k); see `rank`."""
    found = scorer.representations(users)
    if found is None:
        if similarity != "model":
            raise UserError(f"eval.similarity={similarity}: this model's scores are no similarity; use model")
        return rank_scores(scorer.scores, users, known, items.rows, exchange, k).numpy()
    if (scorer.similarity if similarity == "model" else similarity) == "cosine":
        with torch.no_grad():
            found = l2_normalize(found[0]), l2_normalize(found[1])
    return rank(found[0], known, found[1], items, exchange, k).numpy()


def held_out_pairs(
    dataset: Dataset, part: Part, partition: Partition, worker: int
) -> tuple[UserItemPairs, UserItemPairs, np.ndarray]:
    """Return (held-out items, known items, local ids) of a worker's users to evaluate.

    Rows of the pairs index the local ids, which ascend.
    """
    buckets = partition.owned_buckets(worker)
    parts = {p: dataset.interactions(p, buckets) for p in (Part.TRAIN, Part.VALID, Part.TEST) if p <= part}
    local = {p: partition.local(user) for p, (user, _) in parts.items()}
    users = np.intersect1d(local[part], local[Part.TRAIN])
    held_out = _pairs_of(users, [local[part]], [parts[part][1]])
    before = [p for p in parts if p < part]
    return held_out, _pairs_of(users, [local[p] for p in before], [parts[p][1] for p in before]), users


def _pairs_of(users: np.ndarray, local: Iterable[np.ndarray], items: Iterable[np.ndarray]) -> UserItemPairs:
    """Return the pairs of `users` (ascending local ids), with rows that index `users`."""
    user, item = np.concatenate([*local, users[:0]]), np.concatenate([*items, np.zeros(0, np.int32)])
    kept = np.isin(user, users)
    row, item = np.searchsorted(users, user[kept]), item[kept].astype(np.int64)
    order = np.lexsort((item, row))
    return UserItemPairs(row[order], item[order])
