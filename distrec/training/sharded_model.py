"""One worker's shards of a model, and the exact evaluation of the model over all workers. Independent of Ray."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from distrec.data.dataset import Dataset, Part
from distrec.evaluation.metrics import RankingSums, ranking_sums
from distrec.evaluation.ranking import UserItemPairs, rank
from distrec.models import make_model
from distrec.sharding.checkpoint import Rows, load_shard
from distrec.sharding.collectives import Exchange
from distrec.sharding.device_copy import to_device
from distrec.sharding.initialization import normal_rows
from distrec.sharding.partition import Partition
from distrec.sharding.table import Table
from distrec.training.config import Config

USERS, ITEMS = "users", "items"


class ShardedModel:
    """Tables, model and exchange of one worker. All workers of the group make the same calls in the same order.

    Args:
        config: configuration of the run.
        dataset: the prepared data.
        device: where the shards live.
    """

    def __init__(self, config: Config, dataset: Dataset, device: torch.device) -> None:
        self.config, self.dataset, self.device = config, dataset, device
        self.exchange = Exchange(device, config.train.send_bfloat16)
        m, workers = dataset.manifest, self.exchange.workers
        self.partitions = {USERS: Partition(m.users, m.buckets, workers), ITEMS: Partition(m.items, m.buckets, workers)}
        self.model = make_model(config.model)
        self.tables = {name: self._initial_table(name) for name in (USERS, ITEMS)}

    def _initial_table(self, name: str) -> Table:
        partition, worker, model = self.partitions[name], self.exchange.rank, self.config.model
        rows_VD = normal_rows(self.config.run.seed, name, partition, worker, model.dim, model.init_std)
        rows_VD = rows_VD.to(self.device, torch.bfloat16 if model.bfloat16 else torch.float32)
        return Table(name, partition, worker, rows_VD)

    def load_rows(self, folder: Path) -> tuple[dict[str, Rows], dict[str, Any]]:
        """Read the rows of a checkpoint of any number of workers.

        Returns:
            (all per-row tensors of this worker's shards by table, `meta`), as saved.
        """
        saved, meta = load_shard(folder, self.exchange.rank, self.partitions)
        for name, table in self.tables.items():
            table.stored_VD.copy_(saved[name]["rows"])
        return saved, meta

    @torch.no_grad()
    def evaluate(self, part: Part) -> RankingSums:
        """Return the metrics on a part, over the users of all workers.

        Rankings exclude the items that a user had before the part: the training items, and for the test part also the
        validation items. Users without held-out items, or without training items (their rows are untrained), are left
        out and counted.
        """
        ks = self.config.eval.k
        held_out, known, users = self.held_out(part)
        users_UD = self.model.users(self.tables[USERS].read(*to_device([users], self.device)))
        items_VD = self.model.items(self.tables[ITEMS].read_all())
        k = min(max(ks), self.dataset.manifest.items)
        ranked_UK = rank(users_UD, known, items_VD, self.partitions[ITEMS], self.exchange, k).numpy()
        own = ranking_sums(ranked_UK, held_out.indptr(len(users)), held_out.item, ks)
        *sums, ranked = self.exchange.all_sum([*own.sums.values(), own.users])
        totals, users_ranked = dict(zip(own.sums, sums, strict=True)), int(ranked)
        return RankingSums(totals, users_ranked, self.dataset.manifest.users - users_ranked)

    def held_out(self, part: Part) -> tuple[UserItemPairs, UserItemPairs, np.ndarray]:
        """Return (held-out items, known items, local ids) of this worker's users to evaluate.

        Rows of the pairs index the local ids, which ascend.
        """
        partition, buckets = self.partitions[USERS], self.partitions[USERS].owned_buckets(self.exchange.rank)
        parts = {p: self.dataset.interactions(p, buckets) for p in (Part.TRAIN, Part.VALID, Part.TEST) if p <= part}
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
