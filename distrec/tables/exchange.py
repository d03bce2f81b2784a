"""Rows between workers: look-ups go to the owners of the rows, gradients come back. The only user of torch.distributed.

One exchange for the numbers of the wanted rows, one for the rows, one for their gradients. With one worker there is
none, and no copy.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist

from distrec.tables.table import Table


@dataclass(frozen=True)
class Route:
    """How the rows of one look-up travelled, so that their gradients find the way back."""

    asked_A: torch.Tensor
    """Local numbers of this worker's rows that were asked for, by rank of who asked; a row may stand here W times."""
    asked_splits: Sequence[int]
    wanted_splits: Sequence[int]


class Exchange:
    """The collectives of a group of workers. Every worker must make the same calls in the same order."""

    def __init__(self, device: torch.device) -> None:
        grouped = dist.is_available() and dist.is_initialized()
        self.rank = dist.get_rank() if grouped else 0
        self.workers = dist.get_world_size() if grouped else 1
        self.device = device

    def look_up(self, table: Table, wanted_U: torch.Tensor, wanted_splits: Sequence[int]) -> tuple[torch.Tensor, Route]:
        """Up-to-date rows from all workers.

        Args:
            table: this worker's shard.
            wanted_U: local numbers at their owners, ordered by owner, int32 or int64.
            wanted_splits: how many of them each worker owns, (W,).

        Returns:
            (rows, (U, D) in the order of `wanted_U`; the route for `sum_gradients`).
        """
        if self.workers == 1:
            return table.read(wanted_U), Route(wanted_U, wanted_splits, wanted_splits)
        asked_splits = self._swap_counts(wanted_splits)
        asked_A = self._all_to_all(wanted_U, wanted_splits, asked_splits)
        rows_UD = self._all_to_all(table.read(asked_A), asked_splits, wanted_splits)
        return rows_UD, Route(asked_A, asked_splits, wanted_splits)

    def sum_gradients(self, route: Route, grad_UD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Brings gradients to the owners: (local numbers of rows without repeats, int64; sums of their gradients).

        A row's gradients are added in the order of the ranks, so that the sum is the same in every run.
        """
        if self.workers == 1:
            return route.asked_A.long(), grad_UD
        grad_AD = self._all_to_all(grad_UD, route.wanted_splits, route.asked_splits)
        local_R, place_A = torch.unique(route.asked_A.long(), return_inverse=True)
        sums_RD = grad_AD.new_zeros(len(local_R), grad_AD.shape[1])
        for part_D, places in zip(grad_AD.split(route.asked_splits), place_A.split(route.asked_splits), strict=True):
            sums_RD[places] += part_D  # no repeats within one worker's part
        return local_R, sums_RD

    def broadcast(self, tensor: torch.Tensor, source: int) -> torch.Tensor:
        """The tensor of worker `source`, written into every worker's."""
        if self.workers > 1:
            dist.broadcast(tensor, source)
        return tensor

    def gather(self, part: torch.Tensor) -> tuple[torch.Tensor, slice]:
        """(the parts of all workers one after another, this worker's place); parts may differ in length."""
        if self.workers == 1:
            return part, slice(0, len(part))
        ends = list(itertools.accumulate(self._counts(len(part))))
        starts = [0, *ends[:-1]]
        longest = max(end - start for start, end in zip(starts, ends, strict=True))
        padded = part.new_zeros(longest, *part.shape[1:])
        padded[: len(part)] = part
        everyone = self._all_gather(padded)
        parts = [p[: end - start] for p, start, end in zip(everyone, starts, ends, strict=True)]
        return torch.cat(parts), slice(starts[self.rank], ends[self.rank])

    def all_add(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum over the workers, in the order of the ranks."""
        return tensor if self.workers == 1 else torch.stack(self._all_gather(tensor)).sum(0)

    def all_max(self, tensor: torch.Tensor) -> torch.Tensor:
        """The maximum over the workers, element by element."""
        return tensor if self.workers == 1 else torch.stack(self._all_gather(tensor)).amax(0)

    def all_sum(self, values: Sequence[float]) -> list[float]:
        """Sums over the workers, in float64, in the order of the ranks."""
        if self.workers == 1:
            return list(values)
        return self.all_add(torch.tensor(values, dtype=torch.float64, device=self.device)).tolist()

    def _counts(self, count: int) -> list[int]:
        """What each worker counts."""
        return torch.cat(self._all_gather(torch.tensor([count], device=self.device))).tolist()

    def _all_gather(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        everyone = [torch.empty_like(tensor) for _ in range(self.workers)]
        dist.all_gather(everyone, tensor.contiguous())
        return everyone

    def _swap_counts(self, counts: Sequence[int]) -> list[int]:
        mine = torch.tensor(counts, dtype=torch.int64, device=self.device)
        theirs = torch.empty_like(mine)
        dist.all_to_all_single(theirs, mine)
        return theirs.tolist()

    def _all_to_all(self, parts: torch.Tensor, send: Sequence[int], receive: Sequence[int]) -> torch.Tensor:
        received = parts.new_empty(sum(receive), *parts.shape[1:])
        dist.all_to_all_single(received, parts.contiguous(), list(receive), list(send))
        return received
