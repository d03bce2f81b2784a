"""Momentum and decay of idle rows in closed form.

Without a gradient, a step of SGD with momentum mu maps (w, b) of each element linearly, and all elements alike:

    w <- (1 - lr strength) w - lr mu b        b <- mu b               (decoupled)
    w <- (1 - lr strength) w - lr mu b        b <- strength w + mu b  (l2)

At step n, a row that was last written at step a therefore needs the product T(a, n) of the 2 x 2 matrices in between.
One of its singular values soon becomes negligible: momentum fades faster than decay, or decay is so strong that rows
fade faster. From then on T(a, n) = x_n y_a', where the direction x_n is the same for all a, and y_a is constant. A step
thus updates the few hundred products that are not of rank one yet ("open"), whatever the size of the table.

C: coefficients of a step; G: rows that missed steps.
"""

import numpy as np
import torch
from torch import Tensor

from distrec.kernels.optimizer import ReferenceKernels
from distrec.optim.deferred import PerRowDeferred, StepCoefficients
from distrec.optim.rules import Momentum

_NEGLIGIBLE = 1e-18  # ratio of the singular values: far below the resolution of float64
_SMALL = 1e-6  # a column of T this much smaller than the other has lost digits of the direction x
_DET = 4


class ClosedFormMomentum(PerRowDeferred):
    """Implements `PerRowDeferred` for rule `momentum`.

    Coefficients of step a: T(a, now) by rows and its determinant while open; afterwards y_a in the first two.
    """

    form = "in closed form"

    def __init__(
        self, rule: Momentum, stored_VD: Tensor, kernels: ReferenceKernels, strength: float = 0.0, l2: bool = False
    ) -> None:
        super().__init__(len(stored_VD), stored_VD.device, kernels, strength, l2)
        self._momentum, self._buffer_VD = rule.momentum, rule.slots["buffer"]
        self._strength = strength
        self._steps = StepCoefficients(5)
        self._open, self._x = 0, np.zeros(2)  # the first open step; x_now, the first column of T(0, now) at first
        self._restart()

    @property
    def exhausted(self) -> bool:
        return bool(np.abs(self._x).max() < 1e-280)

    def advance(self, lr: float, t: int) -> None:
        mu = self._momentum
        step = np.array([[1 - lr * self._strength, -lr * mu], [self._l2, mu]])
        self._x = step @ self._x
        values_CS = self._steps.reserve(self._now + 1)
        open_C = values_CS[:, self._open : self._now + 1]
        top = step[0, 0] * open_C[:2] + step[0, 1] * open_C[2:4]
        open_C[2:4] = step[1, 0] * open_C[:2] + step[1, 1] * open_C[2:4]
        open_C[:2] = top
        open_C[_DET] *= mu if self._l2 else step[0, 0] * mu  # by its formula: computed from T it would not reach 0
        self._now += 1
        values_CS[:, self._now] = 1, 0, 0, 1, 1
        self._close(values_CS)

    def _close(self, values_CS: np.ndarray) -> None:
        """Replace the oldest products by y_a, if they are of rank one."""
        while self._open < self._now:
            oldest = values_CS[:, self._open]
            if abs(oldest[_DET]) > _NEGLIGIBLE * (oldest[:4] ** 2).max():
                return
            if self._open == 0 and np.abs(self._x).max() < _SMALL * np.abs(oldest[1:4:2]).max():
                self._x = oldest[1:4:2].copy()  # rows fade before momentum does: the second column is x
            larger = int(np.abs(self._x).argmax())
            oldest[:2] = oldest[2 * larger : 2 * larger + 2] / self._x[larger]
            self._open += 1

    def apply_(self, stored_VD: Tensor, local_G: Tensor, since_G: Tensor) -> None:
        since = since_G.cpu().numpy()
        map_4G = self._steps.values_CS[:4, since]
        closed = since < self._open
        map_4G[:, closed] = (self._x[:, None, None] * map_4G[None, :2, closed]).reshape(4, -1)
        self._kernels.affine_(stored_VD, self._buffer_VD, local_G, torch.from_numpy(map_4G))

    def reset(self) -> None:
        super().reset()
        self._restart()

    def _restart(self) -> None:
        self._open, self._x = 0, np.array([1.0, 0.0])
        self._steps.values_CS[:, 0] = 1, 0, 0, 1, 1
