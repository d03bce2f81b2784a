"""Rows of bfloat16: half the memory and traffic of float32, with accumulators and arithmetic in float32.

A bfloat16 has 8 bits, so most updates are smaller than the distance to its neighbour, and rounding to the nearest would
lose them. Rows are therefore rounded up or down at random, with the probabilities that make the mean right (Gupta et
al., "Deep Learning with Limited Numerical Precision", ICML 2015). The random number is a hash of row, column and step:
the same whichever worker holds the row, and in a run that was resumed.
"""

from collections.abc import Callable

import torch

from distrec.kernels.optimizer import Decay, Kernels, MissedSteps
from distrec.optim.rules import Rule

_CHUNK = 2**18  # rows


class Bfloat16Kernels:
    """Implements `interface.Kernels` on float32 copies of the touched rows, with the kernels for float32."""

    def __init__(self, inner: Kernels, rows_at: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """`rows_at` gives the rows of the table with some local numbers."""
        self._inner, self._rows_at = inner, rows_at
        self.take_stale = inner.take_stale
        self.step = 0
        """The step of the run, which keys the rounding; kept by the optimizer."""

    def read(self, stored_VD: torch.Tensor, local_U: torch.Tensor, factor: float) -> torch.Tensor:
        return stored_VD.index_select(0, local_U).float().mul_(factor)

    def scale_(self, stored_VD: torch.Tensor, factor: float) -> None:
        for start in range(0, len(stored_VD), _CHUNK):
            local_U = torch.arange(start, min(start + _CHUNK, len(stored_VD)), device=stored_VD.device)
            self._put_rows_back(stored_VD, local_U, self.read(stored_VD, local_U, factor))

    def step_(
        self,
        stored_VD: torch.Tensor,
        local_U: torch.Tensor,
        grad_UD: torch.Tensor,
        decay: Decay,
        rule: Rule,
        coefficients: tuple[float, ...],
    ) -> None:
        rows_UD, part = stored_VD.index_select(0, local_U).float(), rule.of_rows(local_U)
        self._inner.step_(rows_UD, _places(local_U), grad_UD, decay, part, coefficients)
        self._put_back(stored_VD, local_U, rows_UD, rule, part)

    def replay_(
        self, stored_VD: torch.Tensor, rows_K: torch.Tensor, since_K: torch.Tensor, missed: MissedSteps, rule: Rule
    ) -> None:
        rows_KD, part = stored_VD.index_select(0, rows_K).float(), rule.of_rows(rows_K)
        self._inner.replay_(rows_KD, _places(rows_K), since_K, missed, part)
        self._put_back(stored_VD, rows_K, rows_KD, rule, part)

    def affine_(
        self, stored_VD: torch.Tensor, buffer_VD: torch.Tensor, rows_K: torch.Tensor, map_4K: torch.Tensor
    ) -> None:
        rows_KD, buffer_KD = stored_VD.index_select(0, rows_K).float(), buffer_VD.index_select(0, rows_K)
        self._inner.affine_(rows_KD, buffer_KD, _places(rows_K), map_4K)
        self._put_rows_back(stored_VD, rows_K, rows_KD)
        buffer_VD.index_copy_(0, rows_K, buffer_KD)

    def _put_back(
        self, stored_VD: torch.Tensor, local_U: torch.Tensor, rows_UD: torch.Tensor, rule: Rule, part: Rule
    ) -> None:
        self._put_rows_back(stored_VD, local_U, rows_UD)
        for name, slot in rule.slots.items():
            slot.index_copy_(0, local_U, part.slots[name])

    def _put_rows_back(self, stored_VD: torch.Tensor, local_U: torch.Tensor, rows_UD: torch.Tensor) -> None:
        stored_VD.index_copy_(0, local_U, round_(rows_UD, self._rows_at(local_U.long()), self.step))


def round_(rows_UD: torch.Tensor, ids_U: torch.Tensor, step: int) -> torch.Tensor:
    """Float32 rows as bfloat16, rounded to one of the two neighbours so that the mean is right. Overwrites them.

    Args:
        rows_UD: the rows. ids_U: their rows in the table, int64.
        step: the step of the run.
    """
    column_D = torch.arange(rows_UD.shape[1], dtype=torch.int64, device=rows_UD.device)
    key_UD = ids_U[:, None] * 0x9E3779B1 + column_D * 0x85EBCA77 + step * 0xC2B2AE3D
    noise_UD = key_UD.to(torch.int32)  # what does not fit is cut off, here and in the products
    for shift, factor in ((16, 0x7FEB352D), (15, 0x68E31DA5), (16, 1)):
        noise_UD = (noise_UD ^ ((noise_UD >> shift) & (0xFFFFFFFF >> shift))) * factor
    bits_UD = rows_UD.view(torch.int32)
    bits_UD += noise_UD & 0xFFFF
    bits_UD &= -0x10000
    return rows_UD.to(torch.bfloat16)


def _places(local_U: torch.Tensor) -> torch.Tensor:
    return torch.arange(len(local_U), device=local_U.device)
