"""Idle rows updated by replay: when a row is read, the steps that it missed are applied one by one.

The arithmetic is that of a sweep over the table at each step, in the same order, so the bits are the same; but a row
takes all its steps while it is in cache, where a sweep fetches it from memory for each of them. Replay is needed where
decay enters the accumulators (l2), and for the dense moments of Adam. These fade: once beta1 has reduced the first
moment below the resolution of the row, the rest of the gap is one factor, so a gap costs a few hundred steps at most.

G: rows that missed steps.
"""

import torch
from torch import Tensor

from distrec.kernels.optimizer import MissedSteps, ReferenceKernels, UpdateRule
from distrec.optim.decay import CumulativeLogDecay
from distrec.optim.deferred import PerRowDeferred, StepCoefficients

_FOREVER = 2**31 - 1


class Replay(PerRowDeferred):
    """Implements `PerRowDeferred` for any rule. Coefficients of a step: see `MissedSteps.coefficients_CS`."""

    form = "by replay of the missed steps"

    def __init__(
        self, rule: UpdateRule, stored_VD: Tensor, kernels: ReferenceKernels, strength: float = 0.0, l2: bool = False
    ) -> None:
        super().__init__(len(stored_VD), stored_VD.device, kernels, strength, l2)
        self._rule = rule
        self._log_decay = CumulativeLogDecay()
        self._steps = StepCoefficients(2 + len(rule.coefficients(0.0, 1)))
        self._steps.values_CS[0, 0] = 1.0
        self._origin = 0
        # With l2 the row itself adds to the gradient, so updates never fade.
        self._span = _FOREVER if self._l2 else rule.fades_after(stored_VD.dtype) or _FOREVER

    @property
    def exhausted(self) -> bool:
        return self._log_decay.exhausted

    def advance(self, lr: float, t: int) -> None:
        self._now += 1
        self._origin = t - self._now
        shrink = lr * self._shrink
        left = self._log_decay.advance(shrink)
        self._steps.reserve(self._now)[:, self._now] = left, shrink, *self._rule.coefficients(lr, t)

    def apply_(self, stored_VD: Tensor, local_G: Tensor, since_G: Tensor) -> None:
        coefficients_CS = torch.from_numpy(self._steps.values_CS)
        missed = MissedSteps(coefficients_CS, self._now, self._span, self._l2, self._origin)
        self._kernels.replay_(stored_VD, local_G, since_G, missed, self._rule)

    def reset(self) -> None:
        super().reset()
        self._log_decay = CumulativeLogDecay()
