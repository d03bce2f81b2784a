"""Where embeddings live: one worker's shard of a table. Whoever reads a row reads it up to date."""

from typing import Protocol

import torch

from distrec.core.buffer_pool import select_rows
from distrec.sharding.partition import Partition


class Deferred(Protocol):
    """What idle rows of a shard still owe (weight decay that was put off, say). An optimizer provides it."""

    def read(self, stored_VD: torch.Tensor, local_U: torch.Tensor) -> torch.Tensor:
        """Up-to-date copies of the rows with these local numbers, (U, D)."""
        ...

    def flush_(self, stored_VD: torch.Tensor) -> None:
        """Brings the whole shard up to date in place: nothing is owed any more."""
        ...


class Table:
    """A shard: the rows of one table that one worker owns, (V_local, D), in the order of `plan.rows_of(worker)`."""

    def __init__(self, name: str, partition: Partition, worker: int, rows_VD: torch.Tensor) -> None:
        assert rows_VD.shape[0] == partition.size(worker), (name, rows_VD.shape, partition, worker)
        self.name = name
        self.partition = partition
        self.worker = worker
        self.stored_VD = rows_VD
        self.deferred: Deferred | None = None

    @property
    def dtype(self) -> torch.dtype:
        """What rows are read as: float32 where bfloat16 is stored."""
        return torch.float32 if self.stored_VD.dtype == torch.bfloat16 else self.stored_VD.dtype

    def read(self, local_U: torch.Tensor) -> torch.Tensor:
        """Up-to-date copies of the rows with these local numbers, (U, D)."""
        if self.deferred is None:
            return select_rows(self.stored_VD, local_U).to(self.dtype)
        return self.deferred.read(self.stored_VD, local_U).to(self.dtype)

    def read_all(self) -> torch.Tensor:
        """Every row up to date, (V_local, D), not to be written to: for evaluation and export."""
        return self.flush().to(self.dtype)

    def flush(self) -> torch.Tensor:
        """Brings every row up to date in place and returns the shard as it is stored, (V_local, D)."""
        if self.deferred is not None:
            self.deferred.flush_(self.stored_VD)
        return self.stored_VD
