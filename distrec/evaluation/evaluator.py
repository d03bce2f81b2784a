"""Exact evaluation of a scorer over the users of all workers. Knows neither models nor solvers."""

import numpy as np
import torch

from distrec.core.errors import UserError
from distrec.data.dataset import Dataset, Part
from distrec.evaluation.config import EvalConfig
from distrec.evaluation.metrics import RankingSums, ranking_sums
from distrec.evaluation.ranking import Progress, UserItemPairs, rank, rank_scores
from distrec.models.base import Scorer
from distrec.models.scoring import l2_normalize
from distrec.sharding.collectives import Exchange
from distrec.sharding.partition import Partition


def evaluate_part(
    scorer: Scorer,
    dataset: Dataset,
    part: Part,
    config: EvalConfig,
    exchange: Exchange,
    progress: Progress = lambda share: None,
) -> RankingSums:
    """Return the metrics on a part, over the users of all workers. Collective.

    Rankings exclude the items that a user had before the part: the training items, and for the test part also the
    validation items. Users without held-out items, or without training items (their rows are untrained), are left
    out and counted. Items without training interactions are left out of the rankings by `eval.untrained_items=exclude`;
    held-out interactions with them are counted, and are misses.

    Raises:
        UserError: `eval.similarity` asks for a similarity of a scorer that has no representations.
    """
    m = dataset.manifest
    partition = Partition(m.users, m.buckets, exchange.workers)
    held_out, known, users = held_out_pairs(dataset, part, partition, exchange.rank)
    items, k = Partition(m.items, m.buckets, exchange.workers), min(max(config.k), m.items)
    trained = dataset.item_degrees() > 0
    candidates = trained if config.untrained_items == "exclude" and not trained.all() else None
    ranked_UK = _rank(scorer, users, known, items, config.similarity, exchange, k, candidates, progress)
    own = ranking_sums(ranked_UK, held_out.indptr(len(users)), held_out.item, config.k)
    counts = [own.users, own.relevant, int((~trained[held_out.item]).sum())]
    *sums, ranked, relevant, untrained = exchange.all_sum([*own.sums.values(), *counts])
    summed = dict(zip(own.sums, sums, strict=True))
    return RankingSums(summed, int(ranked), m.users - int(ranked), int(relevant), int(untrained))


def _rank(
    scorer: Scorer,
    users: np.ndarray,
    known: UserItemPairs,
    items: Partition,
    similarity: str,
    exchange: Exchange,
    k: int,
    candidates: np.ndarray | None,
    progress: Progress,
) -> np.ndarray:
    """Return the top-K items of some users, (U, k); see `rank`."""
    found = scorer.representations(users)
    if found is None:
        if similarity != "model":
            raise UserError(f"eval.similarity={similarity}: this model's scores are no similarity; use model")
        return rank_scores(scorer, users, known, items.rows, exchange, k, candidates, progress)[1].numpy()
    if (scorer.similarity if similarity == "model" else similarity) == "cosine":
        with torch.no_grad():
            found = l2_normalize(found[0]), l2_normalize(found[1])
    return rank(found[0], known, found[1], items, exchange, k, candidates, progress)[1].numpy()


def held_out_pairs(
    dataset: Dataset, part: Part, partition: Partition, worker: int
) -> tuple[UserItemPairs, UserItemPairs, np.ndarray]:
    """Return (held-out items, known items, local ids) of a worker's users to evaluate.

    Rows of the pairs index the local ids, which ascend.
    """
    buckets = partition.owned_buckets(worker)
    parts = {p: dataset.interactions(p, buckets) for p in Part if p <= part}
    local = {p: (partition.local(user), item) for p, (user, item) in parts.items()}
    users = np.intersect1d(local[part][0], local[Part.TRAIN][0])
    return _pairs_of(users, [local[part]]), _pairs_of(users, [local[p] for p in local if p < part]), users


def _pairs_of(users: np.ndarray, parts: list[tuple[np.ndarray, np.ndarray]]) -> UserItemPairs:
    """Return the pairs of `users` (ascending local ids) in some (users, items), with rows that index `users`."""
    user, item = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    kept = np.isin(user, users)
    row, item = np.searchsorted(users, user[kept]), item[kept].astype(np.int64)
    order = np.lexsort((item, row))
    return UserItemPairs(row[order], item[order])
