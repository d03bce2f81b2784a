"""Where embeddings live: one worker's shard of a table. Whoever reads a row reads it up to date."""

from typing import Protocol

import torch

from distrec.plan import Plan


class Lazy(Protocol):
    """What idle rows of a shard still owe (weight decay that was put off, say). An optimizer provides it."""

    def settled(self, rows_UD: torch.Tensor, local_U: torch.Tensor | None) -> torch.Tensor:
        """The stored rows brought up to date; `local_U` are their local numbers, None for the whole shard in order."""
        ...

    def mark_settled(self) -> None:
        """The whole shard has just been written up to date: nothing is owed any more."""
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

    def read(self, local_U: torch.Tensor) -> torch.Tensor:
        """Up-to-date copies of the rows with these local numbers, (U, D)."""
        rows_UD = self.stored_VD.index_select(0, local_U)
        return rows_UD if self.lazy is None else self.lazy.settled(rows_UD, local_U)

    def settle(self) -> torch.Tensor:
        """Brings every row up to date in place and returns the shard, (V_local, D): for evaluation, saving, export."""
        if self.lazy is not None:
            self.stored_VD.copy_(self.lazy.settled(self.stored_VD, None))
            self.lazy.mark_settled()
        return self.stored_VD
