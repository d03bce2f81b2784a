"""The kernels in plain torch, for any device: readable, several passes over the touched rows."""

import torch

from distrec.kernels.optimizer import Decay, MissedSteps
from distrec.optim.rules import Rule


class ReferenceKernels:
    """Implements `interface.Kernels`."""

    def read(self, stored_VD: torch.Tensor, local_U: torch.Tensor, factor: float) -> torch.Tensor:
        return stored_VD.index_select(0, local_U).mul_(factor)

    def scale_(self, stored_VD: torch.Tensor, factor: float) -> None:
        stored_VD.mul_(factor)

    def step_(
        self,
        stored_VD: torch.Tensor,
        local_U: torch.Tensor,
        grad_UD: torch.Tensor,
        decay: Decay,
        rule: Rule,
        coefficients: tuple[float, ...],
    ) -> None:
        rows_UD = stored_VD.index_select(0, local_U)
        if decay.l2:
            grad_UD = grad_UD.add(rows_UD, alpha=decay.l2)
        if decay.shrink != 1:
            rows_UD.mul_(decay.shrink)
        stored_VD.index_copy_(0, local_U, rule.update(local_U, rows_UD, grad_UD, *coefficients))

    def take_stale(self, local_U: torch.Tensor, written_V: torch.Tensor, now: int) -> tuple[torch.Tensor, torch.Tensor]:
        rows_K = local_U.long().unique()
        since_K = written_V.index_select(0, rows_K)
        behind_K = since_K < now
        rows_K = rows_K[behind_K]
        written_V.index_fill_(0, rows_K, now)
        return rows_K, since_K[behind_K]

    def replay_(
        self, stored_VD: torch.Tensor, rows_K: torch.Tensor, since_K: torch.Tensor, missed: MissedSteps, rule: Rule
    ) -> None:
        last_K = (since_K.long() + missed.span).clamp(max=missed.now)
        for step in range(int(since_K.min()) + 1, int(last_K.max()) + 1):
            local_U = rows_K[(since_K < step) & (step <= last_K)]
            _, keep, *coefficients = missed.coefficients_CS[:, step].tolist()
            rows_UD = stored_VD.index_select(0, local_U)
            grad_UD = rows_UD * missed.l2
            stored_VD.index_copy_(0, local_U, rule.update(local_U, rows_UD.mul_(keep), grad_UD, *coefficients))
        rest_K = missed.now - last_K
        faded = rest_K > 0
        if faded.any():
            local_U, last_U = rows_K[faded], last_K[faded].cpu()
            left_U = missed.coefficients_CS[0, missed.now] / missed.coefficients_CS[0, last_U]
            stored_VD[local_U] *= left_U.unsqueeze(1).to(stored_VD)
            rule.fade(local_U, rest_K[faded])

    def affine_(
        self, stored_VD: torch.Tensor, buffer_VD: torch.Tensor, rows_K: torch.Tensor, map_4K: torch.Tensor
    ) -> None:
        w_KD, b_KD = stored_VD.index_select(0, rows_K), buffer_VD.index_select(0, rows_K)
        m = map_4K.to(stored_VD).unsqueeze(2)
        stored_VD.index_copy_(0, rows_K, m[0] * w_KD + m[1] * b_KD)
        buffer_VD.index_copy_(0, rows_K, m[2] * w_KD + m[3] * b_KD)
