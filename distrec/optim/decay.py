"""Full-table decoupled weight decay at the cost of the touched rows.

With L_t = sum over r <= t of log(1 - lr_r * strength), decay leaves exp(L_t) of a row after t steps, whatever the
schedule. Rows are stored in this unit, as w / exp(L): a step of decay makes the unit smaller, and with it every row.
What a rule then does to a touched row, w <- w - lr x, is done in the same unit, stored <- stored - lr / exp(L) x. So
decay costs one number a shard, nobody visits a row for it, and no step number is kept for any. (scikit-learn's SGD has
its one vector of weights like this, its `wscale`.) A read multiplies by the unit. Once it is small, the shard is
brought back to unit 1 in one sweep: once in 41 / (lr * strength) steps.

All decay is joined in float64 before it meets a row. Applied step by step, as other float32 optimizers do, less than
about 6e-8 a step would leave a row as it is.
"""

import math

import torch

from distrec.kernels.optimizer import Kernels
from distrec.optim.deferred import DeferredUpdate

_SMALLEST = 2.0**-60  # unit: stored rows are 2^60 times as large as they are, half of what float32 has room for


class CumulativeLogDecay:
    """What decay leaves of a row that nobody touches: exp(L), kept on the host, so that a GPU is never waited for."""

    def __init__(self) -> None:
        self._sum, self._lost = 0.0, 0.0

    @property
    def exhausted(self) -> bool:
        """Whether rows must be settled and the sum start anew: exp(L) would soon be no normal float64.

        A step takes 37 at most, as 1 - lr * strength is 0 or at least 2^-53.
        """
        return self._sum < -650

    def advance(self, shrink: float) -> float:
        """exp(L) after one more step, which takes the part `shrink` of each row."""
        assert shrink < 1 and not self.exhausted, (shrink, self._sum)
        term = math.log1p(-shrink) - self._lost  # Kahan's sum: the error stays at one rounding of the total
        total = self._sum + term
        self._lost = (total - self._sum) - term
        self._sum = total
        return math.exp(total)


class FullDecay(DeferredUpdate):
    """Keeps the rows of one shard in units of what decay has left of them."""

    form = "closed form"

    def __init__(self, strength: float, kernels: Kernels) -> None:
        self._strength = strength
        self._kernels = kernels
        self.reset()

    @property
    def has_pending(self) -> bool:
        return self._unit < 1

    def prepare_step(self, stored_VD: torch.Tensor, local_U: torch.Tensor, lr: float, t: int) -> float:
        shrink = lr * self._strength
        if self._unit * (1 - shrink) < _SMALLEST:
            self.flush_(stored_VD)
        self._unit = self._left.advance(shrink)
        return self._unit

    def read(self, stored_VD: torch.Tensor, local_U: torch.Tensor) -> torch.Tensor:
        return self._kernels.read(stored_VD, local_U, self._unit)

    def flush_(self, stored_VD: torch.Tensor) -> None:
        if self.has_pending:
            self._kernels.scale_(stored_VD, self._unit)
        self.reset()

    def reset(self) -> None:
        self._left, self._unit = CumulativeLogDecay(), 1.0
