"""The kernels in plain torch, for any device: readable, several passes over the touched rows."""

import torch

from distrec.optim.kernels.interface import Decay, Owed
from distrec.optim.rules import Rule


class ReferenceKernels:
    """Implements `interface.Kernels`."""

    def read(self, stored_VD: torch.Tensor, local_U: torch.Tensor, owed: Owed) -> torch.Tensor:
        return stored_VD.index_select(0, local_U).mul_(_factors(owed, local_U).to(stored_VD.dtype))

    def settle_(self, stored_VD: torch.Tensor, owed: Owed) -> None:
        stored_VD.mul_(_factors(owed, None).to(stored_VD.dtype))

    def step_(
        self,
        stored_VD: torch.Tensor,
        local_U: torch.Tensor,
        grad_UD: torch.Tensor,
        decay: Decay,
        rule: Rule,
        numbers: tuple[float, ...],
    ) -> None:
        rows_UD = stored_VD.index_select(0, local_U)
        if decay.l2:
            grad_UD = grad_UD.add(rows_UD, alpha=decay.l2)
        if decay.owed is not None:
            rows_UD.mul_(_factors(decay.owed, local_U).to(rows_UD.dtype))
            decay.owed.written_V.index_fill_(0, local_U, decay.owed.now)
        if decay.shrink != 1:
            rows_UD.mul_(decay.shrink)
        stored_VD.index_copy_(0, local_U, rule.update(local_U, rows_UD, grad_UD, *numbers))


def _factors(owed: Owed, local_U: torch.Tensor | None) -> torch.Tensor:
    """What decay leaves of some rows, None for all, (U, 1), float64."""
    written_U = owed.written_V if local_U is None else owed.written_V.index_select(0, local_U)
    return (owed.left_S[owed.now] / owed.left_S.index_select(0, written_U)).unsqueeze(1)
