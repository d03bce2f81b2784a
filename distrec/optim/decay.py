"""Full-table decoupled weight decay at the cost of the touched rows.

With L_t = sum over r <= t of log(1 - lr_r * strength), decay multiplies a row by exp(L_t) in t steps, whatever the
schedule. Rows are stored as w / scale with scale = exp(L): a step of decay lowers the scale, and with it decays every
row. The update of a touched row, w <- w - lr x, becomes stored <- stored - lr / scale x. Decay thus costs one number a
shard; no row is visited for it, and no step number is kept per row. (scikit-learn's SGD stores its one vector of
weights like this, with `wscale`.) A read multiplies by the scale. When the scale becomes small, one sweep over the
shard brings it back to 1: once in 41 / (lr * strength) steps.

Decay accumulates in float64 before it is applied to a row. Applied step by step, as in other float32 optimizers, less
than about 6e-8 a step would round to no change.
"""

import math
from collections.abc import Sequence

from torch import Tensor

from distrec.kernels.optimizer import ReferenceKernels
from distrec.optim.deferred import DeferredUpdate

_SMALLEST = 2.0**-60  # scale: stored rows are up to 2^60 times the rows, half of the exponent range of float32


class CumulativeLogDecay:
    """Cumulative log-decay L of a row that is not touched. Kept on the host, so that no GPU has to synchronise."""

    def __init__(self) -> None:
        self._sum, self._compensation = 0.0, 0.0

    @property
    def exhausted(self) -> bool:
        """Whether rows must be flushed and the sum restarted, as exp(L) would soon be no normal float64.

        A step subtracts 37 at most, as 1 - lr * strength is 0 or at least 2^-53.
        """
        return self._sum < -650

    def advance(self, shrink: float) -> float:
        """Return exp(L) after one more step, which removes the fraction `shrink` of each row."""
        assert shrink < 1 and not self.exhausted, (shrink, self._sum)
        term = math.log1p(-shrink) - self._compensation  # Kahan summation: the error stays at one rounding of the total
        total = self._sum + term
        self._compensation = (total - self._sum) - term
        self._sum = total
        return math.exp(total)


class FullDecay(DeferredUpdate):
    """Rows of one shard, stored over the decay that is common to all of them."""

    form = "in closed form"

    def __init__(self, strength: float, kernels: ReferenceKernels) -> None:
        self._strength = strength
        self._kernels = kernels
        self._log_decay, self._scale = CumulativeLogDecay(), 1.0

    @property
    def has_pending(self) -> bool:
        return self._scale < 1

    @property
    def scale(self) -> float:
        """The scale in which rows are stored now."""
        return self._scale

    def steps_to_flush(self, lrs: Sequence[float]) -> int:
        """Return how many steps of these learning rates can be taken before rows must be flushed."""
        scale = self._scale
        for k, lr in enumerate(lrs):
            scale *= 1 - lr * self._strength
            if scale < _SMALLEST:
                return k
        return len(lrs)

    def advance(self, lr: float) -> float:
        """Decay all rows by one step. Return the scale in which they are stored from now on."""
        self._scale = self._log_decay.advance(lr * self._strength)
        return self._scale

    def prepare_step(self, stored_VD: Tensor, local_U: Tensor, lr: float, t: int) -> float:
        if not self.steps_to_flush([lr]):
            self.flush_(stored_VD)
        return self.advance(lr)

    def read(self, stored_VD: Tensor, local_U: Tensor) -> Tensor:
        return self._kernels.read(stored_VD, local_U, self._scale)

    def flush_(self, stored_VD: Tensor) -> None:
        if self.has_pending:
            self._kernels.scale_(stored_VD, self._scale)
        self.reset()

    def reset(self) -> None:
        self._log_decay, self._scale = CumulativeLogDecay(), 1.0
