"""The kernels for CPUs: numba's loops, each row taken through decay, rule and writing while it is in cache.

A row is the work of one thread and its arithmetic has one order, so the number of threads changes no digit.
"""

import torch

from distrec.core.buffer_pool import empty
from distrec.kernels.numba import optimizer_loops as loops
from distrec.kernels.numba.launch import Loop
from distrec.kernels.numba.launch import run as _run
from distrec.kernels.optimizer import Decay, MissedSteps
from distrec.kernels.torch_optimizer import ReferenceKernels
from distrec.optim.rules import SGD, Adagrad, Adam, LazyAdam, Momentum, RowwiseAdagrad, Rule


class NumbaKernels(ReferenceKernels):
    """Implements `interface.Kernels` with as many threads as torch uses; `scale_` is the reference's."""

    def read(self, stored_VD: torch.Tensor, local_U: torch.Tensor, factor: float) -> torch.Tensor:
        rows_UD = empty([len(local_U), stored_VD.shape[1]], stored_VD)
        _run(loops.READ, stored_VD.numpy(), local_U.numpy(), factor, rows_UD.numpy())
        return rows_UD

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
            stored_VD.numpy(),
            local_U.numpy(),
            grad_UD.contiguous().numpy(),  # one layout is one compilation
            *(slot.numpy() for slot in rule.slots.values()),
            *coefficients,
            decay.shrink,
            decay.l2,
        )

    def take_stale(self, local_U: torch.Tensor, written_V: torch.Tensor, now: int) -> tuple[torch.Tensor, torch.Tensor]:
        rows_K, since_K = loops.TAKE_STALE(local_U.numpy(), written_V.numpy(), now)
        return torch.from_numpy(rows_K), torch.from_numpy(since_K)

    def replay_(
        self, stored_VD: torch.Tensor, rows_K: torch.Tensor, since_K: torch.Tensor, missed: MissedSteps, rule: Rule
    ) -> None:
        _run(
            _REPLAYS[type(rule)],
            stored_VD.numpy(),
            rows_K.numpy(),
            since_K.numpy(),
            *(slot.numpy() for slot in rule.slots.values()),
            missed.coefficients_CS.numpy(),
            missed.now,
            missed.span,
            missed.l2,
        )

    def affine_(
        self, stored_VD: torch.Tensor, buffer_VD: torch.Tensor, rows_K: torch.Tensor, map_4K: torch.Tensor
    ) -> None:
        _run(loops.AFFINE, stored_VD.numpy(), buffer_VD.numpy(), rows_K.numpy(), map_4K.numpy())


_STEPS: dict[type[Rule], Loop] = {
    SGD: loops.SGD,
    Momentum: loops.MOMENTUM,
    Adagrad: loops.ADAGRAD,
    RowwiseAdagrad: loops.ROWWISE_ADAGRAD,
    LazyAdam: loops.ADAM,
    Adam: loops.ADAM,
}
_REPLAYS: dict[type[Rule], Loop] = {
    Adagrad: loops.REPLAY_ADAGRAD,
    RowwiseAdagrad: loops.REPLAY_ROWWISE_ADAGRAD,
    LazyAdam: loops.REPLAY_ADAM,
    Adam: loops.REPLAY_ADAM,
}
