"""Rows between workers: look-ups go to the owners of the rows, gradients come back. The only user of torch.distributed.

One exchange for the numbers of the wanted rows, ahead of their step, one for the rows, one for their gradients. With
one worker there is none, and no copy.
"""

import itertools
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist

from distrec.tables.table import Table
from distrec.unique import unique_ids


@dataclass(frozen=True)
class Route:
    """How the rows of one look-up travel, so that their gradients find the way back. A counts what was asked for."""

    rows_R: torch.Tensor
    """Local numbers of this worker's rows that were asked for, without repeats."""
    place_A: torch.Tensor | None
    """Place in `rows_R` of each row that was asked for, by rank of who asked; None: in their order."""
    asked_splits: Sequence[int]
    wanted_splits: Sequence[int]


class Exchange:
    """The collectives of a group of workers. Every worker must make the same calls in the same order."""

    def __init__(self, device: torch.device, half: bool = False) -> None:
        """`half`: rows travel as bfloat16. They are rounded with one worker too, where nothing travels."""
        grouped = dist.is_available() and dist.is_initialized()
        self.rank = dist.get_rank() if grouped else 0
        self.workers = dist.get_world_size() if grouped else 1
        self.device = device
        self._half = half
        # Numbers of rows are made on the host and needed there, ahead of time: they travel apart from the rows.
        self._ids = dist.new_group(backend="gloo") if self.workers > 1 else None

    def ask(self, wanted_U: np.ndarray, wanted_splits: Sequence[int]) -> Future[Route]:
        """Tells the owners which rows a step will need. Goes on beside other work; one at a time.

        Args:
            wanted_U: local numbers at their owners, without repeats, ordered by owner, int32.
            wanted_splits: how many of them each worker owns, (W,).
        """
        asked: Future[Route] = Future()
        if self.workers == 1:
            rows_R = torch.from_numpy(wanted_U).to(self.device, non_blocking=True).long()
            asked.set_result(Route(rows_R, None, wanted_splits, wanted_splits))
        else:
            # A daemon: when a peer is lost, nobody has to wait for this exchange to time out.
            threading.Thread(target=self._ask, args=(asked, wanted_U, wanted_splits), daemon=True).start()
        return asked

    def _ask(self, asked: Future[Route], wanted_U: np.ndarray, wanted_splits: Sequence[int]) -> None:
        try:
            mine, theirs = torch.tensor(wanted_splits), torch.empty(self.workers, dtype=torch.int64)
            dist.all_to_all_single(theirs, mine, group=self._ids)
            asked_splits = theirs.tolist()
            asked_A = torch.empty(sum(asked_splits), dtype=torch.int32)
            dist.all_to_all_single(
                asked_A, torch.from_numpy(wanted_U), asked_splits, list(wanted_splits), group=self._ids
            )
            rows_R, place_A = unique_ids(asked_A.numpy(), int(asked_A.max()) + 1 if len(asked_A) else 0)
            asked.set_result(
                Route(
                    torch.from_numpy(rows_R).to(self.device).long(),
                    torch.from_numpy(place_A).to(self.device).long(),
                    asked_splits,
                    wanted_splits,
                )
            )
        except BaseException as error:
            asked.set_exception(error)

    def look_up(self, table: Table, route: Route) -> torch.Tensor:
        """Up-to-date rows from all workers, (U, D), in the order in which they were asked for."""
        rows_RD = table.read(route.rows_R)
        if self._half:
            rows_RD = rows_RD.bfloat16()
        if route.place_A is not None:
            # As bytes: not every backend knows bfloat16, and rows only travel.
            sent = rows_RD.index_select(0, route.place_A)
            sent = sent.view(torch.uint8) if self._half else sent
            rows_RD = self._all_to_all(sent, route.asked_splits, route.wanted_splits)
            rows_RD = rows_RD.view(torch.bfloat16) if self._half else rows_RD
        return rows_RD.float() if self._half else rows_RD

    def sum_gradients(self, route: Route, grad_UD: torch.Tensor) -> torch.Tensor:
        """Brings gradients to the owners: their sums for each of `route.rows_R`, (R, D).

        A row's gradients are added in the order of the ranks, so that the sum is the same in every run.
        """
        if route.place_A is None:
            return grad_UD
        grad_AD = self._all_to_all(grad_UD, route.wanted_splits, route.asked_splits)
        sums_RD = grad_AD.new_zeros(len(route.rows_R), grad_AD.shape[1])
        parts = zip(grad_AD.split(route.asked_splits), route.place_A.split(route.asked_splits), strict=True)
        for part_D, places in parts:
            sums_RD.index_add_(0, places, part_D)  # no repeats within one worker's part
        return sums_RD

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

    def _all_to_all(self, parts: torch.Tensor, send: Sequence[int], receive: Sequence[int]) -> torch.Tensor:
        received = parts.new_empty(sum(receive), *parts.shape[1:])
        dist.all_to_all_single(received, parts.contiguous(), list(receive), list(send))
        return received
