"""Optimizer kernels for GPUs by Triton: one launch a call, without synchronisation.

C: coefficients of a step; G: rows that missed steps; S: steps.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
import triton
from torch import Tensor

from distrec.kernels.optimizer import Decay, MissedSteps, ReferenceKernels, StepsAhead, UpdateRule, padded
from distrec.kernels.triton import optimizer_programs as programs
from distrec.kernels.triton.launch import OPTIONS, aligned

_ELEMENTS = 512  # of one program, if a row is not longer

UPDATES: dict[str, Any] = {
    "sgd": programs.sgd,
    "momentum": programs.momentum,
    "adagrad": programs.adagrad,
    "rowwise_adagrad": programs.rowwise_adagrad,
    "lazy_adam": programs.adam,
    "adam": programs.adam,
}


class TritonKernels(ReferenceKernels):
    """Implements `ReferenceKernels` for one shard. Inherited from the reference are `take_stale`, whose result has no
    size known in advance, and what takes torch an operation or two.

    A row is updated by one program in a fixed order of operations, whatever else is in the batch.
    """

    def __init__(self, row_ids: Callable[[Tensor], Tensor]) -> None:
        """`row_ids` maps local rows to rows of the whole table, by which rows of bfloat16 are rounded."""
        self._row_ids = row_ids
        self._coefficients = _DeviceCoefficients()

    @property
    def ahead(self) -> StepsAhead:
        return self

    def step_(
        self,
        stored_VD: Tensor,
        local_U: Tensor,
        grad_UD: Tensor,
        decay: Decay,
        rule: UpdateRule,
        coefficients: tuple[float, ...],
    ) -> None:
        slots, constants = _of_rule(rule)
        scalars = *padded(coefficients), decay.shrink, decay.l2
        _run(programs.step, stored_VD, local_U, aligned(grad_UD), *slots, *scalars, None, None, None, **constants)

    def read_ahead(self, stored_VD: Tensor, local_U: Tensor, coefficients_SC: Tensor | None, index: Tensor) -> Tensor:
        dtype = torch.float32 if stored_VD.dtype == torch.bfloat16 else stored_VD.dtype
        out_UD = stored_VD.new_empty(len(local_U), stored_VD.shape[1], dtype=dtype)
        _run(programs.gather, _bits(stored_VD), local_U, coefficients_SC, index, out_UD, lowest=-1)
        return out_UD

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
        ids_U = None
        if stored_VD.dtype == torch.bfloat16:
            ids_U = self._row_ids(torch.arange(len(local_U), device=local_U.device) if all_rows else local_U)
        slots, constants = _of_rule(rule)
        constants |= {"ALL_ROWS": all_rows, "ALL_DECAY": all_decay}
        arguments = aligned(grad_UD), *slots, *(0.0,) * 6, coefficients_SC, index, ids_U
        _run(programs.step, _bits(stored_VD), local_U, *arguments, lowest=-1, **constants)

    def replay_(
        self, stored_VD: Tensor, local_G: Tensor, since_G: Tensor, missed: MissedSteps, rule: UpdateRule
    ) -> None:
        slots, constants = _of_rule(rule)
        # The logarithm of 0 is replaced by a finite one, as 0 steps must leave 1 times the slot.
        log_decay = [math.log(factor) if factor else -1e9 for factor in rule.idle_decay] or [0.0, 0.0]
        coefficients = self._coefficients.up_to_now(missed, stored_VD.device)
        steps = coefficients, missed.now, missed.span, missed.l2, *log_decay
        constants |= {"FADES": bool(rule.idle_decay), "C": len(missed.coefficients_CS) - 2}
        _run(programs.replay, stored_VD, local_G, since_G, *slots, *steps, **constants)

    def affine_(self, stored_VD: Tensor, buffer_VD: Tensor, local_G: Tensor, map_4G: Tensor) -> None:
        _run(programs.affine, stored_VD, local_G, buffer_VD, _to_device(map_4G, stored_VD.device))


class _DeviceCoefficients:
    """`MissedSteps.coefficients_CS` on the device, (S, C). A step is copied once, or twice as the capacity doubles."""

    def __init__(self) -> None:
        self._values_SC = torch.zeros(0, 0)
        self._copied = self._origin = 0

    def up_to_now(self, missed: MissedSteps, device: torch.device) -> Tensor:
        """Return the coefficients of all steps up to the present one."""
        needed = missed.now + 1
        if missed.origin != self._origin:  # the shard was flushed in between, and steps are counted from 0 again
            self._copied, self._origin = 0, missed.origin
        if needed > len(self._values_SC):
            shape = max(1024, 2 * needed), len(missed.coefficients_CS)
            self._values_SC = torch.zeros(shape, dtype=torch.float64, device=device)
            self._copied = 0
        if needed > self._copied:
            new_SC = missed.coefficients_CS[:, self._copied : needed].T
            self._values_SC[self._copied : needed].copy_(_to_device(new_SC, device))
            self._copied = needed
        return self._values_SC


def _of_rule(rule: UpdateRule) -> tuple[list[Tensor | None], dict[str, Any]]:
    """Return the two slots that programs expect, and their compile-time constants."""
    slots: list[Tensor | None] = list(rule.slots.values())
    width = next((slot.shape[1] if slot.dim() == 2 else 1 for slot in rule.slots.values()), 1)
    constants = {"UPDATE": UPDATES[rule.name], "X": width, "PAD_X": triton.next_power_of_2(width)}
    return slots + [None] * (2 - len(slots)), constants


def _bits(stored_VD: Tensor) -> Tensor:
    """Return rows of bfloat16 as int16, of which programs make float32, and others as they are."""
    return stored_VD.view(torch.int16) if stored_VD.dtype == torch.bfloat16 else stored_VD


def _to_device(host: Tensor, device: torch.device) -> Tensor:
    """Return the tensor on the device, contiguous; from pinned memory the copy is asynchronous."""
    host = host.contiguous()
    return host.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else host.to(device)


def _run(program: Any, stored_VD: Tensor, local_U: Tensor, *arguments: Any, lowest: int = 0, **constants: Any) -> None:
    """Run a program over some rows of a shard, on the device of the shard, which need not be the current one."""
    assert stored_VD.is_contiguous(), stored_VD.stride()
    (rows, dim), count = stored_VD.shape, len(local_U)
    if local_U.device.type == "cpu" and count and not lowest <= local_U.min() <= local_U.max() < rows:
        raise IndexError("row index outside the shard")  # GPUs check it without synchronisation
    if count == 0:
        return
    width = triton.next_power_of_2(dim)
    tile = max(1, _ELEMENTS // width)
    sizes = {"D": dim, "PAD": width, "TILE": tile, "num_warps": min(16, max(4, width // 512))}
    with torch.cuda.device_of(stored_VD):  # type: ignore[no-untyped-call]
        program[(triton.cdiv(count, tile),)](
            stored_VD, aligned(local_U), count, rows, *arguments, **constants, **sizes, **OPTIONS
        )
