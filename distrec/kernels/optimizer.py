"""What the optimizer asks of its kernels."""

from typing import NamedTuple, Protocol

import torch

from distrec.optim.rules import Rule


class MissedSteps(NamedTuple):
    """Steps that idle rows missed."""

    coefficients_CS: torch.Tensor
    """float64, on the host, one column a step: what decay left of a row until then, what it keeps in this step, then
    `Rule.numbers` of this step."""
    now: int
    """The present step."""
    span: int
    """So many steps of a gap are replayed; the rest is decay, and the fading of accumulators."""
    l2: float
    """The strength of decay through the gradient."""
    origin: int
    """The step of the run that is step 0 here: another one says that the steps are others."""


class Decay(NamedTuple):
    """How touched rows decay at one step: row <- shrink * row, gradient <- gradient + l2 * row."""

    shrink: float = 1.0
    l2: float = 0.0


class Kernels(Protocol):
    """Passes over the rows of one shard. Row numbers are local, int64, and unique if nothing else is said."""

    def read(self, stored_VD: torch.Tensor, local_U: torch.Tensor, factor: float) -> torch.Tensor:
        """`factor` times some stored rows, (U, D), with repeats or without. Changes nothing."""
        ...

    def scale_(self, stored_VD: torch.Tensor, factor: float) -> None:
        """Multiplies every stored row."""
        ...

    def step_(
        self,
        stored_VD: torch.Tensor,
        local_U: torch.Tensor,
        grad_UD: torch.Tensor,
        decay: Decay,
        rule: Rule,
        coefficients: tuple[float, ...],
    ) -> None:
        """Decays the touched rows, then applies the rule: writes rows and accumulators.

        `numbers` are `rule.numbers` of this step. The gradients are not written to.
        """
        ...

    def take_stale(self, local_U: torch.Tensor, written_V: torch.Tensor, now: int) -> tuple[torch.Tensor, torch.Tensor]:
        """(those of some rows, repeats allowed, that were not written in the present step, without repeats; when each
        was, int32). Marks them as written now."""
        ...

    def replay_(
        self, stored_VD: torch.Tensor, rows_K: torch.Tensor, since_K: torch.Tensor, missed: MissedSteps, rule: Rule
    ) -> None:
        """Takes rows from the steps `since_K` to the present one, with gradients of zero."""
        ...

    def affine_(
        self, stored_VD: torch.Tensor, buffer_VD: torch.Tensor, rows_K: torch.Tensor, map_4K: torch.Tensor
    ) -> None:
        """(w, b) <- (m0 w + m1 b, m2 w + m3 b) for each element of some rows; maps are float64, on the host."""
        ...
