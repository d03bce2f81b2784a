"""What momentum and decay do to idle rows, in closed form.

Without a gradient, a step of SGD with momentum mu maps each element's (w, b) linearly, and every element alike:

    w <- (1 - lr strength) w - lr mu b        b <- mu b               (decoupled)
    w <- (1 - lr strength) w - lr mu b        b <- strength w + mu b  (l2)

So a row that was up to date after step a needs, at step n, the product T(a, n) of the 2 x 2 matrices in between. One of
its singular values soon dies out, as momentum fades much faster than decay. From then on T(a, n) = x_n y_a', where the
direction x_n is the same for all a and y_a does not change any more. So a step works on the few hundred products that
have not come so far yet, whatever the size of the table; the others cost nothing until they are read.
"""

import numpy as np
import torch

from distrec.kernels.optimizer import Kernels
from distrec.optim.deferred import PerRowDeferred, Steps
from distrec.optim.rules import Momentum

_DEAD = 1e-18  # the smaller singular value over the larger one: far below float64's resolution
_T00, _T01, _T10, _T11, _DET = range(5)


class MomentumForm(PerRowDeferred):
    """Implements `CatchUp` for rule `momentum`. Columns of `_steps`: T(a, now) and its determinant for `_open` <= a,
    y_a in the first two places for the steps before."""

    form = "closed form"

    def __init__(
        self, rule: Momentum, stored_VD: torch.Tensor, kernels: Kernels, strength: float = 0.0, l2: bool = False
    ) -> None:
        super().__init__(len(stored_VD), stored_VD.device, kernels, strength, l2)
        self._momentum, self._buffer_VD = rule.momentum, rule.slots["buffer"]
        self._strength = strength
        self._steps = Steps(5)
        self._rebase()

    @property
    def exhausted(self) -> bool:
        return bool(np.abs(self._x).max() < 1e-280)

    def advance(self, lr: float, t: int) -> None:
        mu = self._momentum
        step = np.array([[1 - lr * self._strength, -lr * mu], [self._l2, mu]])
        self._x = step @ self._x
        coefficients_CS = self._steps.room_for(self._now + 1)
        open_C = coefficients_CS[:, self._open : self._now + 1]
        top = step[0, 0] * open_C[:2] + step[0, 1] * open_C[2:4]
        open_C[2:4] = step[1, 0] * open_C[:2] + step[1, 1] * open_C[2:4]
        open_C[:2] = top
        open_C[_DET] *= mu if self._l2 else step[0, 0] * mu  # from its formula: computed from T it would never die out
        self._now += 1
        coefficients_CS[:, self._now] = 1, 0, 0, 1, 1
        self._close(coefficients_CS)

    def _close(self, coefficients_CS: np.ndarray) -> None:
        """Gives the oldest products their final form, where they have come so far."""
        larger = int(np.abs(self._x).argmax())
        while self._open < self._now:
            oldest = coefficients_CS[:, self._open]
            if abs(oldest[_DET]) > _DEAD * (oldest[:4] ** 2).max():
                return
            oldest[:2] = oldest[2 * larger : 2 * larger + 2] / self._x[larger]
            self._open += 1

    def catch_up_(self, stored_VD: torch.Tensor, rows_K: torch.Tensor, since_K: torch.Tensor) -> None:
        since = since_K.cpu().numpy()
        map_4K = self._steps.coefficients_CS[:4, since]
        closed = since < self._open
        map_4K[:, closed] = (self._x[:, None, None] * map_4K[None, :2, closed]).reshape(4, -1)
        self._kernels.affine_(stored_VD, self._buffer_VD, rows_K, torch.from_numpy(map_4K))

    def reset(self) -> None:
        super().reset()
        self._rebase()

    def _rebase(self) -> None:
        self._open, self._x = 0, np.array([1.0, 0.0])
        self._steps.coefficients_CS[:, 0] = 1, 0, 0, 1, 1
