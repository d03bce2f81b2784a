"""Interface of the optimizer's kernels, and their reference in plain torch.

G: rows that missed steps (a gap); C: coefficients of a step; S: steps.
"""

from typing import NamedTuple, Protocol, Self

import torch
from torch import Tensor


class UpdateRule(Protocol):
    """What kernels read of an optimizer rule (`distrec.optim.rules.Rule`)."""

    slots: dict[str, Tensor]
    """Accumulators by name, each (V, D) or (V,)."""

    @property
    def name(self) -> str:
        """Registered name, by which compiled kernels find the rule's loop or program."""
        ...

    @property
    def idle_decay(self) -> tuple[float, ...]:
        """Factor of each slot at a step whose gradient is zero, for rules whose idle updates fade; else empty."""
        ...

    def update(self, local_U: Tensor, rows_UD: Tensor, grad_UD: Tensor, *coefficients: float) -> Tensor:
        """Return the rows after a step, (U, D), in plain torch, and update their accumulators.

        Args:
            local_U: local rows, int64, unique.
            rows_UD: the rows before the step; may be overwritten and returned.
            grad_UD: their gradients; not overwritten.
            coefficients: the rule's coefficients of this step.
        """
        ...

    def of_rows(self, local_U: Tensor) -> Self:
        """Return the rule over these rows only, with copies of their accumulators."""
        ...


class MissedSteps(NamedTuple):
    """Steps in which idle rows were not updated."""

    coefficients_CS: Tensor
    """float64, on the host. Rows: cumulative decay factor, decay factor of the step, coefficients of the rule."""
    now: int
    """Present step, a column of `coefficients_CS`."""
    span: int
    """Steps of a gap that are replayed; in the rest of it a row only decays, and its accumulators by `idle_decay`."""
    l2: float
    """Strength of decay through the gradient."""
    origin: int
    """Step of the run that column 0 stands for; another origin means that all columns have changed."""


class Decay(NamedTuple):
    """Decay of the touched rows at one step: row <- shrink * row, gradient <- gradient + l2 * row."""

    shrink: float = 1.0
    l2: float = 0.0


def padded(coefficients: tuple[float, ...]) -> tuple[float, ...]:
    """Return the four coefficients that compiled kernels take, 0 where a rule has fewer."""
    return *coefficients, *(0.0,) * (4 - len(coefficients))


class OptimizerKernels(Protocol):
    """Operations on the rows of one shard, (V, D). Local rows are int64 and, unless stated otherwise, unique."""

    def read(self, stored_VD: Tensor, local_U: Tensor, factor: float) -> Tensor:
        """Return copies of some stored rows times `factor`, (U, D). Rows may repeat."""
        ...

    def scale_(self, stored_VD: Tensor, factor: float) -> None:
        """Multiply all stored rows by `factor`."""
        ...

    def step_(
        self,
        stored_VD: Tensor,
        local_U: Tensor,
        grad_UD: Tensor,
        decay: Decay,
        rule: UpdateRule,
        coefficients: tuple[float, ...],
    ) -> None:
        """Decay the touched rows and apply the rule to rows and accumulators. Gradients are not overwritten."""
        ...

    def take_stale(self, local_U: Tensor, written_V: Tensor, now: int) -> tuple[Tensor, Tensor]:
        """Select the rows last written before step `now`, and mark them as written at `now`.

        Returns: the selected rows (G,), unique though `local_U` may repeat; when each was last written (G,), int32.
        """
        ...

    def replay_(
        self, stored_VD: Tensor, local_G: Tensor, since_G: Tensor, missed: MissedSteps, rule: UpdateRule
    ) -> None:
        """Apply to some rows the steps after `since_G` up to the present one, with gradients of zero."""
        ...

    def affine_(self, stored_VD: Tensor, buffer_VD: Tensor, local_G: Tensor, map_4G: Tensor) -> None:
        """Map (w, b) to (m0 w + m1 b, m2 w + m3 b) for each element of some rows; maps are float64, on the host."""
        ...


class ReferenceKernels:
    """Implements `OptimizerKernels` on any device: readable, several passes over the touched rows."""

    def read(self, stored_VD: Tensor, local_U: Tensor, factor: float) -> Tensor:
        return stored_VD.index_select(0, local_U).mul_(factor)

    def scale_(self, stored_VD: Tensor, factor: float) -> None:
        stored_VD.mul_(factor)

    def step_(
        self,
        stored_VD: Tensor,
        local_U: Tensor,
        grad_UD: Tensor,
        decay: Decay,
        rule: UpdateRule,
        coefficients: tuple[float, ...],
    ) -> None:
        rows_UD = stored_VD.index_select(0, local_U)
        if decay.l2:
            grad_UD = grad_UD.add(rows_UD, alpha=decay.l2)
        if decay.shrink != 1:
            rows_UD.mul_(decay.shrink)
        stored_VD.index_copy_(0, local_U, rule.update(local_U, rows_UD, grad_UD, *coefficients))

    def take_stale(self, local_U: Tensor, written_V: Tensor, now: int) -> tuple[Tensor, Tensor]:
        unique_U = torch.unique(local_U.long())
        since_U = written_V.index_select(0, unique_U)
        stale_U = since_U < now
        local_G = unique_U[stale_U]
        written_V.index_fill_(0, local_G, now)
        return local_G, since_U[stale_U]

    def replay_(
        self, stored_VD: Tensor, local_G: Tensor, since_G: Tensor, missed: MissedSteps, rule: UpdateRule
    ) -> None:
        last_G = (since_G.long() + missed.span).clamp(max=missed.now)
        for step in range(int(since_G.min()) + 1, int(last_G.max()) + 1):
            local_U = local_G[(since_G < step) & (step <= last_G)]
            _, shrink, *coefficients = missed.coefficients_CS[:, step].tolist()
            rows_UD = stored_VD.index_select(0, local_U)
            grad_UD = rows_UD * missed.l2
            stored_VD.index_copy_(0, local_U, rule.update(local_U, rows_UD.mul_(shrink), grad_UD, *coefficients))
        rest_G = missed.now - last_G
        faded = rest_G > 0
        if faded.any():
            local_U, last_U = local_G[faded], last_G[faded].cpu()
            left_U = missed.coefficients_CS[0, missed.now] / missed.coefficients_CS[0, last_U]
            stored_VD[local_U] *= left_U.unsqueeze(1).to(stored_VD)
            for slot_VD, factor in zip(rule.slots.values(), rule.idle_decay, strict=True):
                left_U = torch.pow(torch.tensor(factor, dtype=torch.float64), rest_G[faded].double()).to(slot_VD)
                slot_VD[local_U] *= left_U.unsqueeze(1)

    def affine_(self, stored_VD: Tensor, buffer_VD: Tensor, local_G: Tensor, map_4G: Tensor) -> None:
        w_GD, b_GD = stored_VD.index_select(0, local_G), buffer_VD.index_select(0, local_G)
        m = map_4G.to(stored_VD).unsqueeze(2)
        stored_VD.index_copy_(0, local_G, m[0] * w_GD + m[1] * b_GD)
        buffer_VD.index_copy_(0, local_G, m[2] * w_GD + m[3] * b_GD)
