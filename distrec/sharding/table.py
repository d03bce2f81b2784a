"""Embedding tables: their specification, and one worker's shard of one. Reads return up-to-date rows."""

from dataclasses import dataclass
from typing import Final, Literal, Protocol

import torch
from torch import Tensor

from distrec.core.buffer_pool import select_rows
from distrec.sharding.initialization import Init
from distrec.sharding.partition import Partition

USERS: Final = "users"
ITEMS: Final = "items"
"""The entities, and the names of a model's main tables."""


@dataclass(frozen=True)
class TableSpec:
    """An embedding table of a model or a loss. Tables of one entity share partition and routing."""

    name: str
    """Name, by which it is saved, and its strength of decay configured. Unique in a run."""
    entity: Literal["users", "items"]
    width: int
    """Columns D of a row."""
    init: Init
    decay: float | None = None
    """Strength of weight decay; None: that of the configuration, which can override this one by table."""
    bounds: tuple[float, float] | None = None
    """Interval to which the rows in a batch are clamped after the step. Clamp what is read too: decay of other rows,
    which is deferred, does not."""


class Deferred(Protocol):
    """Deferred updates of the rows of a shard, weight decay for example. Implemented by an optimizer."""

    def read(self, stored_VD: Tensor, local_U: Tensor) -> Tensor:
        """Return up-to-date copies of the rows with these local indices, (U, D)."""

    def flush_(self, stored_VD: Tensor) -> None:
        """Apply all pending updates to the shard in place."""


class Table:
    """The rows of one table that one worker owns, (V_local, D), in the order of `partition.rows_of(worker)`."""

    def __init__(
        self,
        name: str,
        partition: Partition,
        worker: int,
        rows_VD: Tensor,
        decay: float | None = None,
        bounds: tuple[float, float] | None = None,
    ) -> None:
        assert rows_VD.shape[0] == partition.size(worker), (name, rows_VD.shape, partition, worker)
        self.name = name
        self.partition = partition
        self.worker = worker
        self.stored_VD = rows_VD
        self.decay = decay
        self.bounds = bounds
        self.deferred: Deferred | None = None

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the rows that `read` returns: float32 where bfloat16 is stored."""
        return torch.float32 if self.stored_VD.dtype == torch.bfloat16 else self.stored_VD.dtype

    def read(self, local_U: Tensor) -> Tensor:
        """Return up-to-date copies of the rows with these local indices, (U, D)."""
        if self.deferred is None:
            return select_rows(self.stored_VD, local_U).to(self.dtype)
        return self.deferred.read(self.stored_VD, local_U).to(self.dtype)

    def read_all(self) -> Tensor:
        """Return all rows up to date, (V_local, D), read-only: for evaluation and export."""
        return self.flush().to(self.dtype)

    def flush(self) -> Tensor:
        """Bring all rows up to date in place and return the shard as it is stored, (V_local, D)."""
        if self.deferred is not None:
            self.deferred.flush_(self.stored_VD)
        return self.stored_VD
