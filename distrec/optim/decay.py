"""Full-table decoupled weight decay at the cost of the touched rows.

With L_t = sum over r <= t of log(1 - lr_r * strength), a row that was up to date after step a is, after step b, the
stored row times exp(L_b) / exp(L_a): the product of all the steps in between, whatever the schedule. So a step appends
one number, a row keeps the step at which it was last written, and nobody visits idle rows until they are read, or until
float64 runs out of exponents: once in 650 / (lr * strength) steps.

In float32, decay of less than about 6e-8 a step leaves a row as it is. Idle rows are safe, as their factors are joined
in float64 before they meet the row; a row that is touched at each step meets them singly, as in any float32 optimizer,
and then does not decay at all.
"""

import math

import torch

from distrec.optim.idle import Idle
from distrec.optim.kernels.interface import Kernels, Owed


class Left:
    """What decay leaves of a row that nobody touches: exp(L), kept on the host, so that a GPU is never waited for."""

    def __init__(self) -> None:
        self._sum, self._lost = 0.0, 0.0

    @property
    def exhausted(self) -> bool:
        """Whether rows must be settled and the count start anew: exp(L) would soon be no normal float64.

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


class FullDecay(Idle):
    """What the rows of one shard still owe.

    Costs 4 bytes a row, and 8 bytes for each step since the shard was last settled as a whole. S is the room for them.
    """

    form = "closed form"

    def __init__(self, rows: int, device: torch.device, strength: float, kernels: Kernels) -> None:
        super().__init__(rows, device)
        self._strength = strength
        self._kernels = kernels
        self._left = Left()
        self._keep(torch.ones(1024, dtype=torch.float64, device=device))  # exp(L_0) is 1

    def begin(self, stored_VD: torch.Tensor, local_U: torch.Tensor, lr: float, t: int) -> Owed:
        if self._left.exhausted:
            self.settle_(stored_VD)
        self.advance(lr)
        return self.owed  # with this step's decay: all of it in one factor

    def advance(self, lr: float) -> None:
        """One step has begun at this learning rate: every row owes (1 - lr * strength) more."""
        self._now += 1
        if self._now == len(self._left_S):
            self._keep(torch.cat([self._left_S, torch.ones_like(self._left_S)]))
        self._entry_S[self._now] = self._left.advance(lr * self._strength)

    @property
    def owed(self) -> Owed:
        """What kernels need to settle a row, or to mark it as settled."""
        return Owed(self._written_V, self._left_S, self._now)

    def read(self, stored_VD: torch.Tensor, local_U: torch.Tensor) -> torch.Tensor:
        if not self.owes:
            return stored_VD.index_select(0, local_U)
        return self._kernels.read(stored_VD, local_U, self.owed)

    def settle_(self, stored_VD: torch.Tensor) -> None:
        if self.owes:
            self._kernels.settle_(stored_VD, self.owed)
        self.mark_settled()

    def mark_settled(self) -> None:
        super().mark_settled()
        self._left = Left()

    def _keep(self, left_S: torch.Tensor) -> None:
        self._left_S = left_S  # exp(L_0) .. exp(L_now), then room to grow
        # Where it can be had, a view of the same memory: setting one number through torch costs a hundredth of a step.
        self._entry_S = left_S.numpy() if left_S.device.type == "cpu" else left_S
