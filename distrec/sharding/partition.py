"""Who owns what: rows to buckets, buckets to workers. Pure arithmetic, so any process can answer for any other.

Row `r` lies in bucket `r mod P`; bucket `p` belongs to worker `p mod W`. P is chosen once for a data set and outlives
every cluster; W is this run's number of workers. A worker keeps its rows in ascending order, which makes the local
number of a row a formula and needs no table.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np

if TYPE_CHECKING:  # the stream's processes plan too, and start faster without torch
    import torch

Ids = TypeVar("Ids", np.ndarray, "torch.Tensor")


@dataclass(frozen=True)
class Partition:
    """The rows of one table of `rows` rows in `buckets` buckets over `workers` workers."""

    rows: int
    buckets: int
    workers: int

    def __post_init__(self) -> None:
        assert 1 <= self.workers <= self.buckets, self

    def owned_buckets(self, worker: int) -> range:
        """The buckets of a worker, ascending."""
        return range(worker, self.buckets, self.workers)

    def owner(self, rows: Ids) -> Ids:
        """The worker of each row."""
        return rows % self.buckets % self.workers

    def local(self, rows: Ids) -> Ids:
        """The number of each row among the rows of its owner."""
        bucket = rows % self.buckets
        owned = (self.buckets - 1 - bucket % self.workers) // self.workers + 1  # buckets that the row's owner has
        return rows // self.buckets * owned + bucket // self.workers

    def size(self, worker: int) -> int:
        """How many rows a worker owns."""
        full, rest = divmod(self.rows, self.buckets)
        return full * len(self.owned_buckets(worker)) + len(range(worker, rest, self.workers))

    def row(self, local: Ids, worker: int) -> Ids:
        """The rows with these local numbers at a worker: the inverse of `local`."""
        owned = len(self.owned_buckets(worker))
        return local // owned * self.buckets + local % owned * self.workers + worker

    def rows_of(self, worker: int) -> np.ndarray:
        """The rows of a worker, ascending, int64: position k holds the row whose local number is k."""
        return self.row(np.arange(self.size(worker), dtype=np.int64), worker)
