"""Draws of a `BatchSource` on a GPU: the items that it draws on the host, bit for bit.

Shape suffixes: B pairs, N negatives, M extra positives, C pairs of all steps that are on the device.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import triton
from torch import Tensor

from distrec.core.randomness import Purpose
from distrec.kernels.triton import draws_programs as programs
from distrec.sampling.negatives import NegativeSampler

_FEW = 8  # negatives of a pair below which each draw computes a Philox block of its own
_BLOCK = 256


class _Masses(NamedTuple):
    """The arrays of a `NegativeSampler` on the device, one argument of a program."""

    constants: Tensor
    indptr: Tensor
    free_U: Tensor
    start_P: Tensor
    removed: Tensor
    edges: Tensor
    guide: Tensor


class DeviceDraws:
    """Draws for the pairs of a step.

    Args:
        sampler: the sampler of negatives of the host.
        positives: (indptr, indices) in CSR form: the training items of each user, ascending. None if neither extra
            positives nor the known ones among shared negatives are asked for.
        seed: seed of the run.
        device: where to draw.
    """

    def __init__(
        self,
        sampler: NegativeSampler,
        positives: tuple[np.ndarray, np.ndarray] | None,
        seed: int,
        device: torch.device,
    ) -> None:
        self.device, self._options = device, {"UNIFORM": sampler.uniform, "EXCLUDE": sampler.excludes}
        self._half_words = sampler.half_words
        self.state = torch.zeros(3, dtype=torch.int64, device=device)
        """[step among those on the device, epoch, step of the epoch that the first of these is]."""
        items, total, edges, removed = len(sampler.masses_V), sampler.total, sampler.edges, sampler.removed
        if sampler.uniform:  # a point is the item, and each positive takes a mass of 1
            items, total, edges, removed = 0, 0, edges[:1], removed[:1]
        shift = max(0, total.bit_length() - (2 * items).bit_length())  # two to four guide points for each item
        points = np.arange((total >> shift) + 1, dtype=np.int64) << shift
        guide = np.minimum(np.searchsorted(edges, points, side="right") - 1, max(0, items - 1))
        guide = np.append(guide, max(0, items - 1)).astype(
            np.int32
        )  # items between points k and k + 1: guide[k] .. [k + 1]
        guide_steps, search_steps = (
            int(np.diff(bounds).max(initial=0)).bit_length() for bounds in (guide, sampler.indptr)
        )
        constants = np.array([seed & (2**64 - 1), sampler.total, shift, guide_steps, search_steps], np.uint64).view(
            np.int64
        )
        free_U, start_P = (np.append(a, a.dtype.type(0)) for a in (sampler.free_U, sampler.start_P))  # never empty
        arrays = (constants, sampler.indptr.astype(np.int64), free_U, start_P, removed, edges, guide)
        self._masses = _Masses(*(torch.from_numpy(array).to(device) for array in arrays))
        indptr, indices = positives or (np.zeros(1, np.int64), np.zeros(0, np.int32))
        self._positives = tuple(
            torch.from_numpy(array).to(device)
            for array in (indptr.astype(np.int64), np.append(indices, indices.dtype.type(0)))
        )

    def pairs(self, columns: Sequence[Tensor], start_S: Tensor, pairs: int) -> list[Tensor]:
        """Return (users, items, ordinals), (B,) each, of the present step.

        Args:
            columns: the same of all steps on the device, (C,) each.
            start_S: the first pair of each of these steps.
            pairs: pairs of the step.
        """
        out = [column.new_empty(pairs) for column in columns]
        self._launch(programs.gather_pairs, pairs, self.state, start_S, *columns, *out, pairs)
        return out

    def negatives(self, user_B: Tensor, ordinal_B: Tensor, n: int) -> Tensor:
        """Return negatives of each pair, (B, N) int32."""
        pairs = len(user_B)
        out_BN = torch.empty(pairs, n, dtype=torch.int32, device=self.device)
        options = {**self._options, "HALF_WORDS": self._half_words, "PURPOSE": int(Purpose.NEGATIVES)}
        if n < _FEW:
            arguments = (user_B, ordinal_B, out_BN, pairs, n, self.state, self._masses)
            self._launch(programs.draw_each, pairs * n, *arguments, **options)
        elif pairs:
            block = min(128 * (8 if self._half_words else 4), max(32, triton.next_power_of_2(n)))
            with torch.cuda.device_of(out_BN):  # type: ignore[no-untyped-call]
                programs.draw_for_pairs[(pairs,)](
                    user_B, ordinal_B, out_BN, n, self.state, self._masses, **options, BLOCK=block
                )
        return out_BN

    def shared_negatives(self, n: int) -> Tensor:
        """Return the negatives that all pairs of the step share, (N,) int32."""
        out_N = torch.empty(n, dtype=torch.int32, device=self.device)
        options = {"UNIFORM": self._options["UNIFORM"], "PURPOSE": int(Purpose.NEGATIVES)}
        self._launch(programs.draw_shared, n + 7 if n else 0, out_N, n, self.state, self._masses, **options)
        return out_N

    def extra_positives(self, user_B: Tensor, ordinal_B: Tensor, m: int) -> Tensor:
        """Return training items of each pair's user, (B, M) int32."""
        out_BM = torch.empty(len(user_B), m, dtype=torch.int32, device=self.device)
        arguments = (user_B, ordinal_B, out_BM, len(user_B), m, self.state, self._masses.constants, *self._positives)
        purpose = int(Purpose.EXTRA_POSITIVES)
        self._launch(programs.draw_positives, out_BM.numel(), *arguments, PURPOSE=purpose)
        return out_BM

    def known(self, user_B: Tensor, item_N: Tensor) -> Tensor:
        """Return which of the shared items are training items of each pair's user, (B, N) bool."""
        mask_BN = torch.empty(len(user_B), len(item_N), dtype=torch.bool, device=self.device)
        if mask_BN.numel():
            with torch.cuda.device_of(mask_BN):  # type: ignore[no-untyped-call]
                programs.mark_known[(len(user_B),)](
                    user_B, item_N, mask_BN.view(torch.int8), len(item_N), *self._positives, BLOCK=_BLOCK
                )
        return mask_BN

    def touched(self, uses: list[Tensor], rows: int) -> Tensor:
        """Return a list of all rows, (V,) int64, with -1 in place of those that are in none of the uses (int32)."""
        rows_V = torch.full((rows,), -1, dtype=torch.int64, device=self.device)
        for use in uses:
            self._launch(programs.touch, len(use), use, rows_V, len(use))
        return rows_V

    def _launch(self, program: Any, elements: int, *arguments: Any, **options: Any) -> None:
        if elements:
            with torch.cuda.device_of(self.state):  # type: ignore[no-untyped-call]
                program[(triton.cdiv(elements, _BLOCK),)](*arguments, **options, BLOCK=_BLOCK)
