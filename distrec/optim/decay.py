"""Full-table decoupled weight decay at the cost of the touched rows.

With L_t = sum over r <= t of log(1 - lr_r * strength), a row that was up to date after step a is, after step b, the
stored row times exp(L_b - L_a): the product of all the steps in between, whatever the schedule. So a step appends one
number, a row keeps the step at which it was last written, and nobody visits idle rows until they are read.

In float32, decay of less than about 6e-8 a step leaves a row as it is. Idle rows are safe, as their factors are joined
in float64 before they meet the row; a row that is touched at each step meets them singly, as in any float32 optimizer,
and then does not decay at all.
"""

import math

import torch


class FullDecay:
    """What the rows of one shard still owe. Implements `distrec.tables.table.Lazy`.

    Costs 4 bytes a row, and 8 bytes for each step since the shard was last settled as a whole. The sums are float64
    whatever the rows are: they grow with the steps, and what counts is the difference of two. S is the room for them.
    """

    def __init__(self, rows: int, device: torch.device, strength: float) -> None:
        self._strength = strength
        self._written_V = torch.zeros(rows, dtype=torch.int32, device=device)  # steps are counted from the last rebase
        self._sums_S = torch.zeros(1024, dtype=torch.float64, device=device)  # L_0 .. L_now, then room to grow
        self._rebase()

    @property
    def owes(self) -> bool:
        """Whether a step was taken since the whole shard was last settled."""
        return self._now > 0

    def advance(self, lr: float) -> None:
        """One step has begun at this learning rate: every row owes (1 - lr * strength) more."""
        assert lr * self._strength < 1, (lr, self._strength)
        # Kahan's sum, kept on the host: the error stays at one rounding of the total, and a GPU is never waited for.
        term = math.log1p(-lr * self._strength) - self._lost
        total = self._sum + term
        self._lost = (total - self._sum) - term
        self._sum = total
        self._now += 1
        if self._now == len(self._sums_S):
            self._sums_S = torch.cat([self._sums_S, torch.zeros_like(self._sums_S)])
        self._sums_S[self._now] = total

    def settled(self, rows_UD: torch.Tensor, local_U: torch.Tensor | None) -> torch.Tensor:
        """The stored rows brought up to date, (U, D); `local_U` are their local numbers, None for the whole
        shard in order.

        Leaves `rows_UD` as it is, and returns it where nothing is owed.
        """
        return rows_UD * self._factors(local_U).to(rows_UD.dtype) if self.owes else rows_UD

    def settle_(self, rows_UD: torch.Tensor, local_U: torch.Tensor) -> torch.Tensor:
        """Brings copies of stored rows up to date in place. The caller must store them before anyone reads."""
        rows_UD.mul_(self._factors(local_U).to(rows_UD.dtype))
        self._written_V.index_fill_(0, local_U, self._now)
        return rows_UD

    def mark_settled(self) -> None:
        """The whole shard has just been written up to date: forgets the past steps, which are all paid for."""
        self._written_V.zero_()
        self._rebase()

    def _rebase(self) -> None:
        self._now, self._sum, self._lost = 0, 0.0, 0.0
        self._sums_S[0] = 0.0

    def _factors(self, local_U: torch.Tensor | None) -> torch.Tensor:
        """exp(L_now - L_written) of each row, (U, 1), float64."""
        written_U = self._written_V if local_U is None else self._written_V.index_select(0, local_U)
        sums_U = self._sums_S.index_select(0, written_U)
        return sums_U.neg_().add_(self._sum).exp_().unsqueeze(1)
