"""Updates of the rows outside the batch, deferred until these rows are read.

C: coefficients of a step; G: rows that missed steps (a gap); S: steps.
"""

from abc import ABC, abstractmethod
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from distrec.core.buffer_pool import select_rows
from distrec.core.huge_pages import zeros
from distrec.kernels.optimizer import ReferenceKernels

_CHUNK = 2**18  # rows that are flushed at a time: bounds the temporary memory


class DeferredUpdate(ABC):
    """Pending updates of the rows of one shard. Implements `distrec.sharding.table.Deferred`."""

    form: ClassVar[str]
    """How a row is updated when it is read, for the log."""

    @property
    @abstractmethod
    def has_pending(self) -> bool:
        """Whether a step was taken since the whole shard was last flushed."""

    @abstractmethod
    def prepare_step(self, stored_VD: Tensor, local_U: Tensor, lr: float, t: int) -> float | None:
        """Prepare step `t` of the run, which touches these rows (as in `SparseOptimizer.step`).

        Either apply to them all pending updates, so that the step finds them as a dense optimizer would, and return
        None; or decay all rows, and return the scale in which they are stored from now on and the step updates them.
        """

    @abstractmethod
    def read(self, stored_VD: Tensor, local_U: Tensor) -> Tensor:
        """Return up-to-date copies of some rows, (U, D); `local_U` are local rows and may repeat."""

    @abstractmethod
    def flush_(self, stored_VD: Tensor) -> None:
        """Apply all pending updates to the whole shard in place, accumulators included, and forget the past steps."""

    @abstractmethod
    def reset(self) -> None:
        """Forget the past steps: the caller has written the whole shard, up to date."""


class PerRowDeferred(DeferredUpdate):
    """Rows that are updated in place when they are read, as their accumulators change with them.

    Costs 4 bytes a row. Steps are counted from the last flush.
    """

    def __init__(self, rows: int, device: torch.device, kernels: ReferenceKernels, strength: float, l2: bool) -> None:
        """Start at step 0. `strength` is of full decay, 0 without it; `l2`: whether it is added to the gradient."""
        self._written_V = zeros((rows,), torch.int32, device)  # step at which each row was last written
        self._now = 0
        self._kernels = kernels
        self._l2 = strength if l2 else 0.0
        self._shrink = 0.0 if l2 else strength

    @property
    def has_pending(self) -> bool:
        return self._now > 0

    @abstractmethod
    def advance(self, lr: float, t: int) -> None:
        """Record one more step, which is then pending for every row."""

    @abstractmethod
    def apply_(self, stored_VD: Tensor, local_G: Tensor, since_G: Tensor) -> None:
        """Apply to these rows, which are unique, the steps after `since_G` (int32) up to the present one."""

    @property
    def exhausted(self) -> bool:
        """Whether the shard must be flushed before the next step."""
        return False

    def prepare_step(self, stored_VD: Tensor, local_U: Tensor, lr: float, t: int) -> None:
        if self.exhausted:
            self.flush_(stored_VD)
        self._apply_pending(stored_VD, local_U)
        self.advance(lr, t)
        self._written_V.index_fill_(0, local_U, self._now)

    def read(self, stored_VD: Tensor, local_U: Tensor) -> Tensor:
        self._apply_pending(stored_VD, local_U)
        return select_rows(stored_VD, local_U)

    def flush_(self, stored_VD: Tensor) -> None:
        for start in range(0, len(stored_VD), _CHUNK):
            end = min(start + _CHUNK, len(stored_VD))
            self._apply_pending(stored_VD, torch.arange(start, end, device=stored_VD.device))
        self.reset()

    def reset(self) -> None:
        self._written_V.zero_()
        self._now = 0

    def _apply_pending(self, stored_VD: Tensor, local_U: Tensor) -> None:
        if self.has_pending and len(local_U):
            local_G, since_G = self._kernels.take_stale(local_U, self._written_V, self._now)
            if len(local_G):
                self.apply_(stored_VD, local_G, since_G)


class StepCoefficients:
    """Coefficients of each step since the last flush, (C, S) float64 on the host; grows by doubling."""

    def __init__(self, coefficients: int) -> None:
        self.values_CS = np.zeros((coefficients, 1024))

    def reserve(self, step: int) -> np.ndarray:
        """Return the array, grown to contain this step."""
        if step >= self.values_CS.shape[1]:
            self.values_CS = np.concatenate([self.values_CS, np.zeros_like(self.values_CS)], 1)
        return self.values_CS
