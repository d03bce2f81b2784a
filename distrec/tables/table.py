"""Where embeddings live: one worker's shard of a table. Whoever reads a row reads it up to date."""

from typing import Protocol

import torch

from distrec.plan import Plan
from distrec.pool import select_rows


class Lazy(Protocol):
    """What idle rows of a shard still owe (weight decay that was put off, say). An optimizer provides it."""

    def read(self, stored_VD: torch.Tensor, local_U: torch.Tensor) -> torch.Tensor:
        """Up-to-date copies of the rows with these local numbers, (U, D)."""
        ...

    def settle_(self, stored_VD: torch.Tensor) -> None:
        """Brings the whole shard up to date in place: nothing is owed any more."""
        ...


class Table:
    """A shard: the rows of one table that one worker owns, (V_local, D), in the order of `plan.rows_of(worker)`."""

    def __init__(self, name: str, plan: Plan, worker: int, rows_VD: torch.Tensor) -> None:
        assert rows_VD.shape[0] == plan.size(worker), (name, rows_VD.shape, plan, worker)
        self.name = name
        self.plan = plan
        self.worker = worker
        self.stored_VD = rows_VD
        self.lazy: Lazy | None = None

    @property
    def dtype(self) -> torch.dtype:
        """What rows are read as: float32 where bfloat16 is stored."""
        return torch.float32 if self.stored_VD.dtype == torch.bfloat16 else self.stored_VD.dtype

    def read(self, local_U: torch.Tensor) -> torch.Tensor:
        """Up-to-date copies of the rows with these local numbers, (U, D)."""
        if self.lazy is None:
            return select_rows(self.stored_VD, local_U).to(self.dtype)
        return self.lazy.read(self.stored_VD, local_U).to(self.dtype)

    def read_all(self) -> torch.Tensor:
        """Every row up to date, (V_local, D), not to be written to: for evaluation and export."""
        return self.settle().to(self.dtype)

    def settle(self) -> torch.Tensor:
        """Brings every row up to date in place and returns the shard as it is stored, (V_local, D)."""
        if self.lazy is not None:
            self.lazy.settle_(self.stored_VD)
        return self.stored_VD
