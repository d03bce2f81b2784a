"""Interfaces of update rules and of the optimizer's kernels, and the reference of the kernels in plain torch.

G: rows that missed steps (a gap); C: coefficients of a step; S: steps.
"""

import copy
from abc import ABC, abstractmethod
from typing import ClassVar, NamedTuple, Protocol, Self

import torch
from torch import Tensor

Scalars = tuple[float, ...]
"""Coefficients of one step, in the order in which `UpdateRule.change` takes them."""


class UpdateRule(ABC):
    """How a gradient changes its row: one rule over one shard.

    A rule owns its accumulators and knows neither decay nor schedules.
    """

    name: ClassVar[str]
    """Registered name, by which compiled kernels find the rule's loop or program."""

    hyperparameters: ClassVar[tuple[str, ...]] = ()
    """Fields of `OptimConfig` that the constructor takes, beside the rows."""

    l2_is_decoupled: ClassVar[bool] = False
    """Whether lambda * w in the gradient equals decoupled decay: only if the step is linear in the gradient."""

    moves_idle: ClassVar[bool] = False
    """Whether a step also updates rows outside the batch, with gradients of zero, as a dense optimizer does."""

    def __init__(self, rows_VD: Tensor, **hyperparameters: float) -> None:
        """Allocate accumulators for a shard of the size, device and dtype of `rows_VD`, but float32 for bfloat16."""
        self.slots: dict[str, Tensor] = {}

    @abstractmethod
    def coefficients(self, lr: float, t: int) -> Scalars:
        """Return the coefficients of a step.

        The change of a row must be proportional to `lr`, and accumulators must not depend on it.

        Args:
            lr: the learning rate of this step.
            t: the step of the run, from 1, also counting those that did not touch a row.
        """

    @abstractmethod
    def change(self, local_U: Tensor, grad_UD: Tensor, *coefficients: float) -> Tensor:
        """Return what a step subtracts from the touched rows, a new tensor (U, D), in plain torch.

        Reads and writes the accumulators of these rows only.

        Args:
            local_U: local rows, int64, unique.
            grad_UD: their gradients; not overwritten.
            coefficients: `self.coefficients` of this step.
        """

    def fades_after(self, dtype: torch.dtype) -> int | None:
        """Return the number of idle steps without l2 after which rows of this dtype no longer change; None: never."""
        return None

    @property
    def idle_decay(self) -> tuple[float, ...]:
        """Factor of each slot at an idle step, for rules that fade."""
        return ()

    def of_rows(self, local_U: Tensor) -> Self:
        """Return the same rule over some rows, with copies of their accumulators."""
        part = copy.copy(self)
        part.slots = {name: slot.index_select(0, local_U) for name, slot in self.slots.items()}
        return part


class MissedSteps(NamedTuple):
    """Steps in which idle rows were not updated."""

    coefficients_CS: Tensor
    """float64, on the host. Rows: cumulative decay factor, fraction that decay removes at the step, coefficients of
    the rule."""
    now: int
    """Present step, a column of `coefficients_CS`."""
    span: int
    """Steps of a gap that are replayed; in the rest of it a row only decays, and its accumulators by `idle_decay`."""
    l2: float
    """Strength of decay through the gradient."""
    origin: int
    """Step of the run that column 0 stands for; another origin means that all columns have changed."""


class Decay(NamedTuple):
    """Decay of the touched rows at one step: row <- row - shrink * row, gradient <- gradient + l2 * row.

    Kernels subtract shrink * row and the change by the rule together, row - (shrink * row + change). In float32,
    1 - shrink would be rounded to a multiple of 6e-8, alike for all rows; so a row is rounded once, and its gradients
    make the rounding go either way.
    """

    shrink: float = 0.0
    l2: float = 0.0


COEFFICIENTS = 8
"""Numbers that a step of `StepsAhead` reads: scale before it, four coefficients of the rule, shrink, l2, number of the
step."""


class StepsAhead(Protocol):
    """Kernels whose steps read their numbers from the line `index`, (1,), of `coefficients_SC`, both on the device."""

    def read_ahead(self, stored_VD: Tensor, local_U: Tensor, coefficients_SC: Tensor | None, index: Tensor) -> Tensor:
        """Return rows, times the scale if there are coefficients, (U, D); zeros for entries -1."""

    def step_ahead_(
        self,
        stored_VD: Tensor,
        local_U: Tensor,
        grad_UD: Tensor,
        rule: UpdateRule,
        coefficients_SC: Tensor,
        index: Tensor,
        all_rows: bool,
        all_decay: bool,
    ) -> None:
        """As `ReferenceKernels.step_`. Entries -1 of `local_U` are none.

        With `all_rows` entry k is k or -1, and rows of -1 are updated too, with decay if `all_decay`.
        """


def padded(coefficients: tuple[float, ...]) -> tuple[float, ...]:
    """Return the four coefficients that compiled kernels take, 0 where a rule has fewer."""
    return *coefficients, *(0.0,) * (4 - len(coefficients))


class ReferenceKernels:
    """Operations on the rows of one shard, (V, D), in plain torch on any device; base class of the compiled kernels.

    Local rows are int64 and, unless stated otherwise, unique.
    """

    @property
    def ahead(self) -> StepsAhead | None:
        """Kernels of the same rows that read the numbers of a step from the device; None if there are none."""
        return None

    def read(self, stored_VD: Tensor, local_U: Tensor, factor: float) -> Tensor:
        """Return copies of some stored rows times `factor`, (U, D). Rows may repeat."""
        return stored_VD.index_select(0, local_U).mul_(factor)

    def scale_(self, stored_VD: Tensor, factor: float) -> None:
        """Multiply all stored rows by `factor`."""
        stored_VD.mul_(factor)

    def step_(
        self, stored_VD: Tensor, local_U: Tensor, grad_UD: Tensor, decay: Decay, rule: UpdateRule, coefficients: Scalars
    ) -> None:
        """Decay the touched rows and apply the rule to rows and accumulators. Gradients are not overwritten."""
        rows_UD = stored_VD.index_select(0, local_U)
        if decay.l2:
            grad_UD = grad_UD.add(rows_UD, alpha=decay.l2)
        change_UD = rule.change(local_U, grad_UD, *coefficients).add_(rows_UD, alpha=decay.shrink)
        stored_VD.index_copy_(0, local_U, rows_UD.sub_(change_UD))

    def take_stale(self, local_U: Tensor, written_V: Tensor, now: int) -> tuple[Tensor, Tensor]:
        """Select the rows last written before step `now`, and mark them as written at `now`.

        Returns: the selected rows (G,), unique though `local_U` may repeat; when each was last written (G,), int32.
        """
        unique_U = torch.unique(local_U.long())
        since_U = written_V.index_select(0, unique_U)
        stale_U = since_U < now
        local_G = unique_U[stale_U]
        written_V.index_fill_(0, local_G, now)
        return local_G, since_U[stale_U]

    def replay_(
        self, stored_VD: Tensor, local_G: Tensor, since_G: Tensor, missed: MissedSteps, rule: UpdateRule
    ) -> None:
        """Apply to some rows the steps after `since_G` up to the present one, with gradients of zero."""
        last_G = (since_G.long() + missed.span).clamp(max=missed.now)
        for step in range(int(since_G.min()) + 1, int(last_G.max()) + 1):
            local_U = local_G[(since_G < step) & (step <= last_G)]
            _, shrink, *coefficients = missed.coefficients_CS[:, step].tolist()
            rows_UD = stored_VD.index_select(0, local_U)
            grad_UD = rows_UD * missed.l2
            change_UD = rule.change(local_U, grad_UD, *coefficients).add_(rows_UD, alpha=shrink)
            stored_VD.index_copy_(0, local_U, rows_UD.sub_(change_UD))
        rest_G = missed.now - last_G
        faded = rest_G > 0
        if faded.any():
            local_U, last_U = local_G[faded], last_G[faded].cpu()
            left_U = missed.coefficients_CS[0, missed.now] / missed.coefficients_CS[0, last_U]
            stored_VD[local_U] = (stored_VD[local_U] * left_U.unsqueeze(1).to(stored_VD.device)).to(stored_VD.dtype)
            for slot_VD, factor in zip(rule.slots.values(), rule.idle_decay, strict=True):
                left_U = torch.pow(torch.tensor(factor, dtype=torch.float64), rest_G[faded].double()).to(slot_VD)
                slot_VD[local_U] *= left_U.unsqueeze(1)

    def affine_(self, stored_VD: Tensor, buffer_VD: Tensor, local_G: Tensor, map_4G: Tensor) -> None:
        """Map (w, b) to (m0 w + m1 b, m2 w + m3 b) for each element of some rows; maps are float64, on the host."""
        w_GD, b_GD = stored_VD.index_select(0, local_G), buffer_VD.index_select(0, local_G)
        m = map_4G.to(stored_VD.device).unsqueeze(2)
        stored_VD.index_copy_(0, local_G, (m[0] * w_GD + m[1] * b_GD).to(stored_VD.dtype))
        buffer_VD.index_copy_(0, local_G, (m[2] * w_GD + m[3] * b_GD).to(buffer_VD.dtype))
