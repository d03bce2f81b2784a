"""The kernels for GPUs: Triton's programs, one launch a call. Nothing here waits for the device."""

import math
from typing import Any

import torch
import triton

from distrec.kernels.optimizer import Decay, MissedSteps
from distrec.kernels.torch_optimizer import ReferenceKernels
from distrec.kernels.triton import optimizer_programs as programs
from distrec.kernels.triton.launch import OPTIONS, aligned
from distrec.optim.rules import SGD, Adagrad, Adam, LazyAdam, Momentum, RowwiseAdagrad, Rule

_ELEMENTS = 512  # of one program, as far as whole rows allow


class TritonKernels(ReferenceKernels):
    """Implements `interface.Kernels` for one shard. The reference's are `claim`, whose result has no size known before,
    and what torch does in an operation or two.

    A row is the work of one program and its arithmetic has one order, whatever else is in the batch.
    """

    def __init__(self) -> None:
        self._mirror = _Mirror()

    def step_(
        self,
        stored_VD: torch.Tensor,
        local_U: torch.Tensor,
        grad_UD: torch.Tensor,
        decay: Decay,
        rule: Rule,
        coefficients: tuple[float, ...],
    ) -> None:
        _run(
            _STEPS[type(rule)],
            stored_VD,
            local_U,
            aligned(grad_UD),
            *rule.slots.values(),
            *coefficients,
            decay.shrink,
            decay.l2,
        )

    def replay_(
        self, stored_VD: torch.Tensor, rows_K: torch.Tensor, since_K: torch.Tensor, missed: MissedSteps, rule: Rule
    ) -> None:
        _run(
            _REPLAYS[type(rule)],
            stored_VD,
            rows_K,
            since_K,
            *rule.slots.values(),
            self._mirror.steps(missed, stored_VD.device),
            *(_betas(missed) if isinstance(rule, LazyAdam) else ()),
            missed.now,
            missed.span,
            missed.l2,
        )

    def affine_(
        self, stored_VD: torch.Tensor, buffer_VD: torch.Tensor, rows_K: torch.Tensor, map_4K: torch.Tensor
    ) -> None:
        _run(programs.affine, stored_VD, rows_K, buffer_VD, _sent(map_4K.to(stored_VD.dtype), stored_VD.device))


_STEPS: dict[type[Rule], Any] = {
    SGD: programs.sgd,
    Momentum: programs.momentum,
    Adagrad: programs.adagrad,
    RowwiseAdagrad: programs.rowwise_adagrad,
    LazyAdam: programs.adam,
    Adam: programs.adam,
}
_REPLAYS: dict[type[Rule], Any] = {
    Adagrad: programs.replay_adagrad,
    RowwiseAdagrad: programs.replay_rowwise_adagrad,
    LazyAdam: programs.replay_adam,
    Adam: programs.replay_adam,
}


class _Mirror:
    """`Past.numbers_CS` on the device, one row a step. A step is sent once, or twice as room grows by doubling."""

    def __init__(self) -> None:
        self._numbers_SC = torch.zeros(0, 0)
        self._have = self._origin = 0

    def steps(self, missed: MissedSteps, device: torch.device) -> torch.Tensor:
        """The numbers of all steps up to the present one."""
        need = missed.now + 1
        if missed.origin != self._origin:  # the shard was settled in between, and steps are counted anew
            self._have, self._origin = 0, missed.origin
        if need > len(self._numbers_SC):
            self._numbers_SC = torch.zeros(
                max(1024, 2 * need), len(missed.coefficients_CS), dtype=torch.float64, device=device
            )
            self._have = 0
        if need > self._have:
            new_SC = missed.coefficients_CS[:, self._have : need].T
            self._numbers_SC[self._have : need].copy_(_sent(new_SC, device))
            self._have = need
        return self._numbers_SC


def _betas(missed: MissedSteps) -> tuple[float, float, float, float]:
    """Adam's decay rates and their logarithms; that of 0 is finite, as 0 steps at rate 0 must leave 1 of a moment."""
    betas = missed.coefficients_CS[3:5, missed.now].tolist()
    return *betas, *(math.log(beta) if beta else -1e9 for beta in betas)


def _sent(host: torch.Tensor, device: torch.device) -> torch.Tensor:
    """The tensor on the device, contiguous. Out of pinned memory the host need not wait for it."""
    host = host.contiguous()
    return host.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else host.to(device)


def _run(program: Any, stored_VD: torch.Tensor, local_U: torch.Tensor, *arguments: Any, **constants: bool) -> None:
    """Runs a program over some rows of a shard."""
    rows = len(stored_VD)
    if local_U.device.type == "cpu" and len(local_U) and not 0 <= local_U.min() <= local_U.max() < rows:
        raise IndexError("a row number that the shard does not have")  # GPUs check it themselves, without waiting
    _launch(program, len(local_U), stored_VD, aligned(local_U), len(local_U), rows, *arguments, **constants)


def _launch(program: Any, count: int, stored_VD: torch.Tensor, *arguments: Any, **constants: bool) -> None:
    """Runs a program over `count` rows, on the device of the shard, which need not be the current one."""
    assert stored_VD.is_contiguous(), stored_VD.stride()
    dim = stored_VD.shape[1]
    padded = triton.next_power_of_2(dim)
    rows = max(1, _ELEMENTS // padded)
    if count > 0:
        with torch.cuda.device_of(stored_VD):
            program[(triton.cdiv(count, rows),)](
                stored_VD,
                *arguments,
                D=dim,
                PAD=padded,
                ROWS=rows,
                num_warps=min(16, max(4, padded // 512)),
                **constants,
                **OPTIONS,
            )
