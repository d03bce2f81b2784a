"""What happens to the rows that a step does not touch, put off until they are read."""

from abc import ABC, abstractmethod
from typing import ClassVar

import numpy as np
import torch

from distrec.core.buffer_pool import select_rows
from distrec.kernels.optimizer import Kernels
from distrec.sharding.initialization import zeros

_CHUNK = 2**18  # rows that are settled at a time: bounds what is allocated beside the table


class DeferredUpdate(ABC):
    """What the rows of one shard have missed. Implements `distrec.sharding.table.Lazy`."""

    form: ClassVar[str]
    """How a row catches up, for people."""

    @property
    @abstractmethod
    def has_pending(self) -> bool:
        """Whether a step was taken since the whole shard was last settled."""

    @abstractmethod
    def prepare_step(self, stored_VD: torch.Tensor, local_U: torch.Tensor, lr: float, t: int) -> float | None:
        """Step `t` of the run begins, which touches these rows (as in `SparseOptimizer.step`).

        Either brings them up to date, so that the step finds them as a dense optimizer would, and decays them; or
        decays all rows at once, and returns the unit that rows are stored in from now on, in which the step moves them.
        """

    @abstractmethod
    def read(self, stored_VD: torch.Tensor, local_U: torch.Tensor) -> torch.Tensor:
        """Up-to-date copies of some stored rows, (U, D); `local_U` are their local numbers, with repeats or without."""

    @abstractmethod
    def flush_(self, stored_VD: torch.Tensor) -> None:
        """Brings the whole shard up to date in place, accumulators included, and forgets the past steps."""

    @abstractmethod
    def reset(self) -> None:
        """The whole shard has just been written up to date by somebody else."""


class PerRowDeferred(DeferredUpdate):
    """Rows that are brought up to date in place as soon as they are read, as their accumulators move with them.

    Costs 4 bytes a row. Steps are counted from when the shard was last settled as a whole.
    """

    def __init__(self, rows: int, device: torch.device, kernels: Kernels, strength: float, l2: bool) -> None:
        """`strength` is that of full decay, 0 without; `l2` says whether it enters through the gradient."""
        self._written_V = zeros((rows,), torch.int32, device)  # the step of each row
        self._now = 0
        self._kernels = kernels
        self._l2 = strength if l2 else 0.0
        self._shrink = 0.0 if l2 else strength

    @property
    def has_pending(self) -> bool:
        return self._now > 0

    @abstractmethod
    def advance(self, lr: float, t: int) -> None:
        """One step has begun: every row has missed it."""

    @abstractmethod
    def catch_up_(self, stored_VD: torch.Tensor, rows_K: torch.Tensor, since_K: torch.Tensor) -> None:
        """Brings these rows, which are unique, from the steps `since_K` (int32) to the present one."""

    @property
    def exhausted(self) -> bool:
        """Whether the shard must be settled before the next step."""
        return False

    def prepare_step(self, stored_VD: torch.Tensor, local_U: torch.Tensor, lr: float, t: int) -> None:
        if self.exhausted:
            self.flush_(stored_VD)
        self._bring(stored_VD, local_U)
        self.advance(lr, t)
        self._written_V.index_fill_(0, local_U, self._now)

    def read(self, stored_VD: torch.Tensor, local_U: torch.Tensor) -> torch.Tensor:
        self._bring(stored_VD, local_U)
        return select_rows(stored_VD, local_U)

    def flush_(self, stored_VD: torch.Tensor) -> None:
        for start in range(0, len(stored_VD), _CHUNK):
            end = min(start + _CHUNK, len(stored_VD))
            self._bring(stored_VD, torch.arange(start, end, device=stored_VD.device))
        self.reset()

    def reset(self) -> None:
        self._written_V.zero_()
        self._now = 0

    def _bring(self, stored_VD: torch.Tensor, local_U: torch.Tensor) -> None:
        if self.has_pending and len(local_U):
            rows_K, since_K = self._kernels.take_stale(local_U, self._written_V, self._now)
            if len(rows_K):
                self.catch_up_(stored_VD, rows_K, since_K)


class Steps:
    """Some numbers for each step since the last settling, (C, S) float64 on the host; grows by doubling."""

    def __init__(self, columns: int) -> None:
        self.coefficients_CS = np.zeros((columns, 1024))

    def room_for(self, step: int) -> np.ndarray:
        """The array, with room for this step at least."""
        if step >= self.coefficients_CS.shape[1]:
            self.coefficients_CS = np.concatenate([self.coefficients_CS, np.zeros_like(self.coefficients_CS)], 1)
        return self.coefficients_CS
