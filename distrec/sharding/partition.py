"""Partition of the rows of a table: rows to buckets, buckets to workers. Arithmetic only, so that no lookup is needed.

A row's bucket is `row mod P`; the owner of a bucket is worker `bucket mod W`. P is chosen once for a data set and does
not depend on the cluster; W is the number of workers of this run. A worker stores its rows in ascending order, so that
a row's local index is a formula.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np

if TYPE_CHECKING:  # the processes of the stream import this too, and start faster without torch
    import torch

Ids = TypeVar("Ids", np.ndarray, "torch.Tensor")


@dataclass(frozen=True)
class Partition:
    """The partition of one table of `rows` rows into `buckets` buckets over `workers` workers."""

    rows: int
    buckets: int
    workers: int

    def __post_init__(self) -> None:
        assert 1 <= self.workers <= self.buckets, self

    def owned_buckets(self, worker: int) -> range:
        """Return the buckets of a worker, ascending."""
        return range(worker, self.buckets, self.workers)

    def owner(self, rows: Ids) -> Ids:
        """Return the owner of each row."""
        owner: Ids = rows % self.buckets % self.workers
        return owner

    def local(self, rows: Ids) -> Ids:
        """Return the local index of each row: its index among the rows of its owner."""
        bucket = rows % self.buckets
        owned = (self.buckets - 1 - bucket % self.workers) // self.workers + 1  # number of buckets of the owner
        local: Ids = rows // self.buckets * owned + bucket // self.workers
        return local

    def size(self, worker: int) -> int:
        """Return the number of rows of a worker."""
        full, rest = divmod(self.rows, self.buckets)
        return full * len(self.owned_buckets(worker)) + len(range(worker, rest, self.workers))

    def row(self, local: Ids, worker: int | Ids) -> Ids:
        """Return the rows with these local indices at a worker, or at one each: the inverse of `local`."""
        owned = (self.buckets - 1 - worker) // self.workers + 1  # number of buckets of the worker
        row: Ids = local // owned * self.buckets + local % owned * self.workers + worker
        return row

    def rows_of(self, worker: int) -> np.ndarray:
        """Return the rows of a worker, ascending, int64: entry k is the row with local index k."""
        return self.row(np.arange(self.size(worker), dtype=np.int64), worker)
