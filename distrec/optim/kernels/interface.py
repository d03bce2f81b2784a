"""What the optimizer asks of its kernels."""

from typing import NamedTuple, Protocol

import torch

from distrec.optim.rules import Rule


class Owed(NamedTuple):
    """Decay that was put off: a stored row must be multiplied by left_S[now] / left_S[written_V[row]]."""

    written_V: torch.Tensor
    """int32: the step after which each row was last written."""
    left_S: torch.Tensor
    """float64: the part that the steps so far leave of a row."""
    now: int
    """The present step."""


class Decay(NamedTuple):
    """How touched rows decay at one step: row <- factor * shrink * row, gradient <- gradient + l2 * stored row."""

    shrink: float = 1.0
    l2: float = 0.0
    owed: Owed | None = None
    """Gives the factor of each row; afterwards these rows owe nothing. None: 1, and nobody owes."""


class Kernels(Protocol):
    """Passes over the rows of one shard. Row numbers are local, int64, unique, in any order."""

    def read(self, stored_VD: torch.Tensor, local_U: torch.Tensor, owed: Owed) -> torch.Tensor:
        """Up-to-date copies of some stored rows, (U, D). Changes nothing."""
        ...

    def settle_(self, stored_VD: torch.Tensor, owed: Owed) -> None:
        """Brings every stored row up to date in place; the caller then forgets what was owed."""
        ...

    def step_(
        self,
        stored_VD: torch.Tensor,
        local_U: torch.Tensor,
        grad_UD: torch.Tensor,
        decay: Decay,
        rule: Rule,
        numbers: tuple[float, ...],
    ) -> None:
        """Decays the touched rows, then applies the rule: writes rows, accumulators and, if owed, when.

        `numbers` are `rule.numbers` of this step. The gradients are not written to.
        """
        ...
