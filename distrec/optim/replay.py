"""Idle rows that catch up step by step: what they missed is done to them when they are read, all of it at once.

It is the arithmetic of a sweep over the table at each step, in the same order, so it gives the same digits; but a row
takes its steps while it is in cache, where a sweep fetches it from memory for each of them. Needed where decay feeds
the accumulators (l2), and for the dense moments of Adam. These fade: once beta1 has driven the first moment below any
digit of the row, the rest of the gap is one factor, so that a gap costs a few hundred steps at most.
"""

import torch

from distrec.kernels.optimizer import Kernels, MissedSteps
from distrec.optim.decay import CumulativeLogDecay
from distrec.optim.deferred import PerRowDeferred, Steps
from distrec.optim.rules import Rule

_FOREVER = 2**31 - 1


class Replay(PerRowDeferred):
    """Implements `CatchUp` for any rule. Columns of `_steps`: exp(L), what decay keeps, the numbers of the rule."""

    form = "replay"

    def __init__(
        self, rule: Rule, stored_VD: torch.Tensor, kernels: Kernels, strength: float = 0.0, l2: bool = False
    ) -> None:
        super().__init__(len(stored_VD), stored_VD.device, kernels, strength, l2)
        self._rule = rule
        self._left = CumulativeLogDecay()
        self._steps = Steps(2 + len(rule.coefficients(0.0, 1)))
        self._steps.coefficients_CS[0, 0] = 1.0
        self._origin = 0
        # With l2 the row itself feeds the gradient, which never fades.
        self._span = _FOREVER if self._l2 else rule.fades_after(stored_VD.dtype) or _FOREVER

    @property
    def exhausted(self) -> bool:
        return self._left.exhausted

    def advance(self, lr: float, t: int) -> None:
        self._now += 1
        self._origin = t - self._now
        shrink = lr * self._shrink
        self._steps.room_for(self._now)[:, self._now] = (
            self._left.advance(shrink),
            1 - shrink,
            *self._rule.coefficients(lr, t),
        )

    def catch_up_(self, stored_VD: torch.Tensor, rows_K: torch.Tensor, since_K: torch.Tensor) -> None:
        coefficients_CS = torch.from_numpy(self._steps.coefficients_CS)
        missed = MissedSteps(coefficients_CS, self._now, self._span, self._l2, self._origin)
        self._kernels.replay_(stored_VD, rows_K, since_K, missed, self._rule)

    def reset(self) -> None:
        super().reset()
        self._left = CumulativeLogDecay()
