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

from distrec.optim.kernels.interface import Kernels, Owed


class FullDecay:
    """What the rows of one shard still owe. Implements `distrec.tables.table.Lazy`.

    Costs 4 bytes a row, and 8 bytes for each step since the shard was last settled as a whole. S is the room for them.
    """

    def __init__(self, rows: int, device: torch.device, strength: float, kernels: Kernels) -> None:
        self._strength = strength
        self._kernels = kernels
        self._written_V = torch.zeros(rows, dtype=torch.int32, device=device)  # steps are counted from the last rebase
        self._keep(torch.ones(1024, dtype=torch.float64, device=device))
        self._rebase()

    @property
    def owes(self) -> bool:
        """Whether a step was taken since the whole shard was last settled."""
        return self._now > 0

    @property
    def exhausted(self) -> bool:
        """Whether the shard must be settled before the next step: exp(L) would soon be no normal float64.

        A step takes 37 at most, as 1 - lr * strength is 0 or at least 2^-53.
        """
        return self._sum < -650

    def advance(self, lr: float) -> None:
        """One step has begun at this learning rate: every row owes (1 - lr * strength) more."""
        assert lr * self._strength < 1 and not self.exhausted, (lr, self._strength, self._sum)
        # Kahan's sum, kept on the host: the error stays at one rounding of the total, and a GPU is never waited for.
        term = math.log1p(-lr * self._strength) - self._lost
        total = self._sum + term
        self._lost = (total - self._sum) - term
        self._sum = total
        self._now += 1
        if self._now == len(self._left_S):
            self._keep(torch.cat([self._left_S, torch.ones_like(self._left_S)]))
        self._entry_S[self._now] = math.exp(total)

    @property
    def owed(self) -> Owed:
        """What kernels need to settle a row, or to mark it as settled."""
        return Owed(self._written_V, self._left_S, self._now)

    def read(self, stored_VD: torch.Tensor, local_U: torch.Tensor) -> torch.Tensor:
        """Up-to-date copies of some stored rows, (U, D); `local_U` are their local numbers."""
        if not self.owes:
            return stored_VD.index_select(0, local_U)
        return self._kernels.read(stored_VD, local_U, self.owed)

    def settle_(self, stored_VD: torch.Tensor) -> None:
        """Brings the whole shard up to date in place, and forgets the past steps, which are all paid for."""
        if self.owes:
            self._kernels.settle_(stored_VD, self.owed)
        self.mark_settled()

    def mark_settled(self) -> None:
        """The whole shard has just been written up to date by somebody else."""
        self._written_V.zero_()
        self._rebase()

    def _keep(self, left_S: torch.Tensor) -> None:
        self._left_S = left_S  # exp(L_0) .. exp(L_now), then room to grow
        # Where it can be had, a view of the same memory: setting one number through torch costs a hundredth of a step.
        self._entry_S = left_S.numpy() if left_S.device.type == "cpu" else left_S

    def _rebase(self) -> None:
        self._now, self._sum, self._lost = 0, 0.0, 0.0  # exp(L_0) is 1 already
