"""What the learners of solvers share: interactions in both orders, checkpoints, and scores by training items.

E: interactions; A: users whose scores are computed, of all workers.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from distrec.data.dataset import Dataset, Part
from distrec.models.base import Emit, Scorer, SolverConfig
from distrec.sampling.batch import Batch
from distrec.sampling.source import BatchSource
from distrec.sharding.checkpoint import Rows, load_shard, save_shard
from distrec.sharding.collectives import Exchange
from distrec.sharding.partition import Partition
from distrec.sharding.table import ITEMS, USERS

Csr = tuple[np.ndarray, np.ndarray]
"""(indptr, indices) of lists in CSR form."""

_BLOCK = 2**22  # cells of a dense block of rows


class DebiasedConfig(SolverConfig):
    """Base of the solvers with a debiased form (MINE paper, Sec. 5)."""

    debiased: bool = False
    """Minimise the debiased objective, in which a user's positives weigh c_u: its known and unknown positives over its
    known ones."""
    form: Literal["ratio", "topk"] = "ratio"
    """c_u is 1 + alpha (`ratio`) or 1 + k / |I_u| (`topk`), I_u the user's training items; at most |items| / |I_u|."""
    alpha: float = Field(0.0, ge=0)
    """For `ratio`: unknown positives as a multiple of the known ones."""
    k: int = Field(0, ge=0)
    """For `topk`: unknown positives of each user."""

    def unused(self) -> set[str]:
        return ({"k"} if self.form == "ratio" else {"alpha"}) if self.debiased else {"form", "alpha", "k"}

    def coefficients(self, degree_V: np.ndarray, items: int) -> np.ndarray:
        """Return c_u of users with these numbers of training items, (V,) float64; 1 if not debiased.

        Args:
            degree_V: |I_u|; of users without training items c_u has no effect.
            items: items of the catalogue.
        """
        if not self.debiased:
            return np.ones(len(degree_V))
        known_V = np.maximum(degree_V, 1).astype(float)
        wanted_V = np.full(len(known_V), 1 + self.alpha) if self.form == "ratio" else 1 + self.k / known_V
        weight_V: np.ndarray = np.minimum(wanted_V, items / known_V)
        return weight_V


class SolverLearner(Scorer):
    """Base of the learners of solvers: parts of `Learner` that they share. It reads the interactions on first use.

    Args:
        dataset: the prepared data.
        device: where the shards live.
    """

    source: BatchSource | None = None

    def __init__(self, dataset: Dataset, device: torch.device) -> None:
        self.dataset, self.device, self.exchange = dataset, device, Exchange(device)
        self.rank, m = self.exchange.rank, dataset.manifest
        self.partitions = {
            USERS: Partition(m.users, m.buckets, self.exchange.workers),
            ITEMS: Partition(m.items, m.buckets, self.exchange.workers),
        }
        self._seconds: dict[str, float] = {}

    @property
    def scorer(self) -> Scorer:
        return self

    def observe(self, watched: Sequence[float]) -> None:
        """Ignore the watched metric."""

    def timing(self) -> dict[str, float]:
        seconds, self._seconds = self._seconds, {}
        return seconds

    def diagnostics(self) -> dict[str, float]:
        return {}

    @contextmanager
    def timed(self, part: str) -> Iterator[None]:
        """Add the duration of the block to a part of `timing`."""
        start = time.perf_counter()
        yield
        self._seconds[part] = self._seconds.get(part, 0.0) + time.perf_counter() - start

    @cached_property
    def user_items(self) -> Csr:
        """Training items of this worker's users, ascending."""
        users = self.partitions[USERS]
        user_E, item_E = self.dataset.interactions(Part.TRAIN, users.owned_buckets(self.rank))
        return group(users.local(user_E), item_E, users.size(self.rank))

    @cached_property
    def item_users(self) -> Csr:
        """Users of this worker's items, ascending. Reads all buckets, one at a time, and keeps what is its own."""
        items, parts = self.partitions[ITEMS], []
        for bucket in range(self.dataset.manifest.buckets):
            user, item = self.dataset.interactions(Part.TRAIN, [bucket])
            own = items.owner(item) == self.rank
            parts.append((user[own], item[own]))
        user_E, item_E = (np.concatenate(columns) for columns in zip(*parts, strict=True))
        return group(items.local(item_E), user_E, items.size(self.rank))

    def all_user_items(self) -> Csr:
        """Return the training items of all users, ascending."""
        m = self.dataset.manifest
        return group(*self.dataset.interactions(Part.TRAIN, range(m.buckets)), m.users)


class OnePassLearner(SolverLearner):
    """Base of the learners that are done after one epoch. A subclass implements what raises an error here."""

    loss: float | None = None
    """Total loss of the fitted model; None before the first epoch."""

    def summary(self) -> str:
        """Return what is fitted, for the log."""
        raise NotImplementedError

    def describe(self) -> str:
        return f"{self.summary()}; done after one epoch, so that train.epochs has no effect"

    def train_epoch(self, epoch: int, first_step: int, batches: Iterator[Batch], emit: Emit) -> float:
        """Fit, unless that is done: later epochs change nothing. Return the loss at the first worker, else 0."""
        if self.loss is None:
            self.loss = self.fit()
        return self.loss if self.rank == 0 else 0.0

    def fit(self) -> float:
        """Fit the model. Return its total loss at the first worker; 0 if it minimises none. Collective."""
        raise NotImplementedError

    def item_rows(self) -> Rows:
        """Return the fitted values of this worker's items, (V, ...) each, to be saved."""
        raise NotImplementedError

    def restore(self, rows: Rows) -> None:
        """Restore the model from what `item_rows` returned."""
        raise NotImplementedError

    def save(self, folder: Path, meta: dict[str, Any]) -> None:
        partition = {ITEMS: self.partitions[ITEMS]}
        save_shard(folder, self.rank, partition, {ITEMS: self.item_rows()}, meta, {"loss": self.loss})

    def load(self, folder: Path) -> dict[str, Any]:
        tables, meta, shared = load_shard(folder, self.rank, {ITEMS: self.partitions[ITEMS]})
        self.loss = shared["loss"]
        self.restore(tables[ITEMS])
        return meta


class ItemItemLearner(OnePassLearner):
    """Base of models that score x_u S, x_u the user's training items. Each worker has the columns of S of its items.

    Users' items travel to all workers, and the scores of each worker's items back: S never moves.
    """

    def own_scores(self, lists: Csr, own_V: np.ndarray) -> Tensor:
        """Return scores of some items of this worker, (A, V), on the device of the exchange.

        Args:
            lists: training items of users of any worker.
            own_V: local indices of the items, ascending.
        """
        raise NotImplementedError

    @torch.no_grad()
    def scores(self, users: np.ndarray, items: np.ndarray, out_UV: Tensor) -> None:
        indptr, indices = self.user_items
        counts_U = np.diff(indptr)[users]
        listed = indices[
            np.repeat(indptr[users] - np.cumsum(counts_U) + counts_U, counts_U) + np.arange(counts_U.sum())
        ]
        partition, exchange = self.partitions[ITEMS], self.exchange
        owner_V = partition.owner(items)
        own_V = partition.local(items[owner_V == self.rank])
        counts_A, own = exchange.gather(torch.from_numpy(counts_U).to(self.device))
        listed_of_all, _ = exchange.gather(torch.from_numpy(listed).to(self.device))
        lists = np.concatenate([[0], np.cumsum(counts_A.cpu().numpy())]), listed_of_all.cpu().numpy()
        scores_AV = self.own_scores(lists, own_V)
        if exchange.workers == 1:
            out_UV.copy_(scores_AV)
            return
        # Each worker requests the rows of its users from all workers, padded to as many items as any of them scores.
        widths_W = np.bincount(owner_V, minlength=exchange.workers)
        padded_AV = torch.nn.functional.pad(scores_AV, (0, int(widths_W.max(initial=0)) - len(own_V)))
        requested = np.tile(np.arange(own.start, own.stop, dtype=np.int32), exchange.workers)
        plan = exchange.plan_lookup(requested, [len(users)] * exchange.workers).result()
        received = exchange.fetch(plan, padded_AV.index_select(0, plan.rows_R)).cpu()
        for worker, block_UV in enumerate(received.view(exchange.workers, len(users), padded_AV.shape[1])):
            out_UV[:, torch.from_numpy(owner_V == worker)] = block_UV[:, : widths_W[worker]]


def group(row_E: np.ndarray, value_E: np.ndarray, rows: int) -> Csr:
    """Return the values of each row in CSR form, ascending within a row."""
    order = np.lexsort((value_E, row_E))
    return np.concatenate([[0], np.cumsum(np.bincount(row_E, minlength=rows))]), value_E[order]


def blocks(rows: int, width: int) -> Iterator[slice]:
    """Yield slices of rows, so that a dense block of them with this width holds some 4 million cells."""
    size = max(1, _BLOCK // max(1, width))
    for start in range(0, rows, size):
        yield slice(start, min(start + size, rows))


def cooccurrences(item_users: Csr, rows: slice, user_items: Csr, weight_U: np.ndarray, items: int) -> np.ndarray:
    """Return the weighted number of users that each of some items shares with every item, (R, items).

    Args:
        item_users: users of each item.
        rows: the items, as indices into these lists.
        user_items: items of each user.
        weight_U: weight of each user; its dtype is that of the result.
        items: items of the catalogue.
    """
    from distrec.kernels.numba.sparse_product import add_sparse_product  # importing numba takes 0.5 s

    out_RV = np.zeros((rows.stop - rows.start, items), weight_U.dtype)
    indptr, indices = item_users
    first = indptr[rows.start : rows.stop + 1], indices
    add_sparse_product(first, weight_U, user_items, np.ones(len(user_items[1]), weight_U.dtype), out_RV)
    return out_RV
