"""Rows of bfloat16: half the memory and traffic of float32, with accumulators and arithmetic in float32.

A bfloat16 has 8 significant bits: most updates are smaller than the distance to the next value, and rounding to nearest
would lose them. Rows are rounded stochastically, up or down with the probabilities that keep the mean (Gupta et al.,
"Deep Learning with Limited Numerical Precision", ICML 2015). The random bits are a hash of row, column and step, so
they depend neither on the worker that holds the row nor on whether the run was resumed. G: rows that missed steps.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from distrec.kernels.optimizer import Decay, MissedSteps, ReferenceKernels, Scalars, StepsAhead, UpdateRule

_CHUNK = 2**18  # rows


class Bfloat16Kernels(ReferenceKernels):
    """Kernels that apply float32 kernels to float32 copies of the touched rows."""

    def __init__(self, inner: ReferenceKernels, row_ids: Callable[[Tensor], Tensor]) -> None:
        """Wrap the float32 kernels `inner`; `row_ids` maps local rows to rows of the whole table."""
        self._inner, self._row_ids = inner, row_ids
        self.step = 0
        """Step of the run, which keys the rounding; set by the optimizer."""

    @property
    def ahead(self) -> StepsAhead | None:
        return self._inner.ahead  # which rounds rows itself

    def read(self, stored_VD: Tensor, local_U: Tensor, factor: float) -> Tensor:
        return stored_VD.index_select(0, local_U).float().mul_(factor)

    def scale_(self, stored_VD: Tensor, factor: float) -> None:
        for start in range(0, len(stored_VD), _CHUNK):
            local_U = torch.arange(start, min(start + _CHUNK, len(stored_VD)), device=stored_VD.device)
            self._write_rows(stored_VD, local_U, self.read(stored_VD, local_U, factor))

    def step_(
        self, stored_VD: Tensor, local_U: Tensor, grad_UD: Tensor, decay: Decay, rule: UpdateRule, coefficients: Scalars
    ) -> None:
        rows_UD, part = stored_VD.index_select(0, local_U).float(), rule.of_rows(local_U)
        self._inner.step_(rows_UD, _arange_like(local_U), grad_UD, decay, part, coefficients)
        self._write(stored_VD, local_U, rows_UD, rule, part)

    def replay_(
        self, stored_VD: Tensor, local_G: Tensor, since_G: Tensor, missed: MissedSteps, rule: UpdateRule
    ) -> None:
        rows_GD, part = stored_VD.index_select(0, local_G).float(), rule.of_rows(local_G)
        self._inner.replay_(rows_GD, _arange_like(local_G), since_G, missed, part)
        self._write(stored_VD, local_G, rows_GD, rule, part)

    def affine_(self, stored_VD: Tensor, buffer_VD: Tensor, local_G: Tensor, map_4G: Tensor) -> None:
        rows_GD, buffer_GD = stored_VD.index_select(0, local_G).float(), buffer_VD.index_select(0, local_G)
        self._inner.affine_(rows_GD, buffer_GD, _arange_like(local_G), map_4G)
        self._write_rows(stored_VD, local_G, rows_GD)
        buffer_VD.index_copy_(0, local_G, buffer_GD)

    def take_stale(self, local_U: Tensor, written_V: Tensor, now: int) -> tuple[Tensor, Tensor]:
        return self._inner.take_stale(local_U, written_V, now)

    def _write(self, stored_VD: Tensor, local_U: Tensor, rows_UD: Tensor, rule: UpdateRule, part: UpdateRule) -> None:
        self._write_rows(stored_VD, local_U, rows_UD)
        for name, slot in rule.slots.items():
            slot.index_copy_(0, local_U, part.slots[name])

    def _write_rows(self, stored_VD: Tensor, local_U: Tensor, rows_UD: Tensor) -> None:
        stored_VD.index_copy_(0, local_U, round_(rows_UD, self._row_ids(local_U.long()), self.step))


def round_(rows_UD: Tensor, ids_U: Tensor, step: int) -> Tensor:
    """Round float32 rows stochastically to bfloat16, (U, D). Overwrites `rows_UD`.

    Args:
        rows_UD: the rows. ids_U: their rows in the whole table, int64.
        step: the step of the run.
    """
    column_D = torch.arange(rows_UD.shape[1], dtype=torch.int64, device=rows_UD.device)
    key_UD = ids_U[:, None] * 0x9E3779B1 + column_D * 0x85EBCA77 + step * 0xC2B2AE3D
    noise_UD = key_UD.to(torch.int32)  # truncates; the products below wrap around
    for shift, factor in ((16, 0x7FEB352D), (15, 0x68E31DA5), (16, 1)):
        noise_UD = (noise_UD ^ ((noise_UD >> shift) & (0xFFFFFFFF >> shift))) * factor
    bits_UD = rows_UD.view(torch.int32)
    bits_UD += noise_UD & 0xFFFF
    bits_UD &= -0x10000
    return rows_UD.to(torch.bfloat16)


def _arange_like(local_U: Tensor) -> Tensor:
    return torch.arange(len(local_U), device=local_U.device)
