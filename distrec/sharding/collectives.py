"""Rows between workers: look-ups go to the owners of the rows, gradients come back. The only user of torch.distributed.

One exchange for the numbers of the wanted rows, ahead of their step, one for the rows, one for their gradients. Workers
of one machine hand rows over in memory that they share. With one worker there is no exchange, and no copy.
"""

import itertools
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist

from distrec.kernels.dedup import unique_ids
from distrec.sharding.shared_memory import SharedBuffers, size_for
from distrec.sharding.transfer import to_device


@dataclass(frozen=True)
class LookupPlan:
    """How the rows of one look-up travel, so that their gradients find the way back. A counts what was asked for."""

    rows_R: torch.Tensor
    """Local numbers of this worker's rows that were asked for, without repeats."""
    row_index_A: torch.Tensor | None
    """Place in `rows_R` of each row that was asked for, by rank of who asked; None: in their order."""
    gradient_index_WR: np.ndarray | None
    """Where each worker's gradient of each of `rows_R` will stand, int32, -1 where it has none: this worker's own among
    its gradients, the others' among those that come in. None with one worker."""
    requested_WW: np.ndarray
    """How many rows each worker (first axis) wants of each."""


class Exchange:
    """The collectives of a group of workers. Every worker must make the same calls in the same order."""

    def __init__(self, device: torch.device, half: bool = False, share: bool = True) -> None:
        """
        Args:
            device: of what travels.
            half: rows travel as bfloat16. They are rounded with one worker too, where nothing travels.
            share: hand rows over in shared memory where that can be had.
        """
        grouped = dist.is_available() and dist.is_initialized()
        self.rank = dist.get_rank() if grouped else 0
        self.workers = dist.get_world_size() if grouped else 1
        self.device = device
        self._half = half
        # Numbers of rows are made on the host and needed there, ahead of time: they travel apart from the rows.
        self._ids = dist.new_group(backend="gloo") if self.workers > 1 else None
        self._share = share and self.workers > 1 and device.type == "cpu"
        self._buffers: list[SharedBuffers] = []
        self._turn = 0
        self._buffers_for(np.zeros((self.workers, self.workers), np.int64), 0)  # now, so that `by` is the truth

    @property
    def by(self) -> str:
        """What rows travel through, for people."""
        return "shared memory" if self._share else dist.get_backend()

    def plan_lookup(self, requested_U: np.ndarray, wanted_splits: Sequence[int]) -> Future[LookupPlan]:
        """Tells the owners which rows a step will need. Goes on beside other work; one at a time.

        Args:
            wanted_U: local numbers at their owners, without repeats, ordered by owner, int32.
            wanted_splits: how many of them each worker owns, (W,).
        """
        asked: Future[LookupPlan] = Future()
        if self.workers == 1:
            (rows_R,) = to_device([requested_U], self.device)
            asked.set_result(LookupPlan(rows_R.long(), None, None, np.array([wanted_splits])))
        else:
            # A daemon: when a peer is lost, nobody has to wait for this exchange to time out.
            threading.Thread(target=self._plan_lookup, args=(asked, requested_U, wanted_splits), daemon=True).start()
        return asked

    def _plan_lookup(self, asked: Future[LookupPlan], requested_U: np.ndarray, wanted_splits: Sequence[int]) -> None:
        try:
            requested_WW = torch.empty(self.workers, self.workers, dtype=torch.int64)
            dist.all_gather(list(requested_WW), torch.tensor(wanted_splits), group=self._ids)
            requested_splits = requested_WW[:, self.rank].tolist()
            requested_A = torch.empty(sum(requested_splits), dtype=torch.int32)
            dist.all_to_all_single(
                requested_A, torch.from_numpy(requested_U), requested_splits, list(wanted_splits), group=self._ids
            )
            rows_R, row_index_A = unique_ids(requested_A.numpy(), int(requested_A.max()) + 1 if len(requested_A) else 0)
            asked.set_result(
                LookupPlan(
                    torch.from_numpy(rows_R).to(self.device).long(),
                    torch.from_numpy(row_index_A).to(self.device).long(),
                    self._gradient_indices(row_index_A, len(rows_R), requested_WW.numpy()),
                    requested_WW.numpy(),
                )
            )
        except BaseException as error:
            asked.set_exception(error)

    def _gradient_indices(self, row_index_A: np.ndarray, rows: int, requested_WW: np.ndarray) -> np.ndarray:
        """`Route.at_WR`."""
        gradient_index_WR = np.full((self.workers, rows), -1, np.int32)
        ends = requested_WW[:, self.rank].cumsum()
        for rank, (end, count) in enumerate(zip(ends, requested_WW[:, self.rank], strict=True)):
            first = requested_WW[rank, :rank].sum() if rank == self.rank else end - count
            gradient_index_WR[rank, row_index_A[end - count : end]] = np.arange(first, first + count)
        return gradient_index_WR

    def fetch(self, lookup: LookupPlan, rows_RD: torch.Tensor) -> torch.Tensor:
        """What the owners have for the rows that were asked for, (U, D), in the order in which they were.

        Valid until the second exchange of rows after this one: it may lie in memory that others write to then.

        Args:
            route: of this look-up.
            rows_RD: what this worker has for each of `route.rows_R`. Not written to, and not copied with one worker.
        """
        if self._half:
            rows_RD = rows_RD.bfloat16()
        if lookup.row_index_A is not None:
            places = lookup.row_index_A.split(lookup.requested_WW[:, self.rank].tolist())

            def pack(rank: int, out: torch.Tensor) -> None:
                torch.index_select(rows_RD, 0, places[rank], out=out)

            rows_RD = self._swap(pack, lookup.requested_WW.T, rows_RD)
        return rows_RD.float() if self._half else rows_RD

    def sum_gradients(self, lookup: LookupPlan, grad_UD: torch.Tensor) -> torch.Tensor:
        """Brings gradients to the owners: their sums for each of `route.rows_R`, (R, D).

        A row's gradients are added in the order of the ranks, so that the sum is the same in every run.
        """
        if lookup.gradient_index_WR is None:
            return grad_UD
        parts = grad_UD.split(lookup.requested_WW[self.rank].tolist())

        def pack(rank: int, out: torch.Tensor) -> None:
            if rank != self.rank:  # what is its own is added from where it is
                out.copy_(parts[rank])

        received_AD = self._swap(pack, lookup.requested_WW, grad_UD)
        if self.device.type == "cpu":
            from distrec.kernels.numba.gradient_sums import (
                add_parts,  # here, as importing numba takes a good part of a second
            )

            return add_parts(received_AD, grad_UD, self.rank, lookup.gradient_index_WR)
        sums_RD = grad_UD.new_zeros(len(lookup.rows_R), grad_UD.shape[1])
        for rank, at_R in enumerate(torch.from_numpy(lookup.gradient_index_WR)):
            rows = (at_R >= 0).nonzero().squeeze(1)
            source = grad_UD if rank == self.rank else received_AD
            at, rows = at_R[rows].to(self.device), rows.to(self.device)
            sums_RD.index_add_(0, rows, source.index_select(0, at))  # no repeats within one worker's part
        return sums_RD

    def _swap(self, pack: Callable[[int, torch.Tensor], None], rows_WW: np.ndarray, like: torch.Tensor) -> torch.Tensor:
        """Hands something to every worker. Returns what all of them have for this one, by rank.

        Args:
            pack: writes what this worker has for a rank into a tensor; what it does not write stays undefined.
            rows_WW: how many rows each worker (first axis) has for each.
            like: what the rows are like: their width and dtype.
        """
        receive, width = rows_WW[:, self.rank].tolist(), like.shape[1]
        buffers = self._buffers_for(rows_WW, width * like.itemsize)
        if buffers is None:
            send = rows_WW[self.rank].tolist()
            sent, received = like.new_empty(sum(send), width), like.new_empty(sum(receive), width)
            for rank, part in enumerate(sent.split(send)):
                pack(rank, part)
            # As bytes: not every backend knows bfloat16, and rows only travel.
            dist.all_to_all_single(received.view(torch.uint8), sent.view(torch.uint8), receive, send)
            return received
        starts_WW = (rows_WW.cumsum(0) - rows_WW) * width * like.itemsize

        def write(rank: int) -> None:
            rows = rows_WW[self.rank, rank]
            pack(rank, buffers.tensor(rank, starts_WW[self.rank, rank], rows, width, like.dtype))

        for rank in range(self.workers):
            if rank != self.rank:
                write(rank)
        buffers.barrier_arrive()
        write(self.rank)  # nobody waits for it
        buffers.wait()
        return buffers.tensor(self.rank, 0, sum(receive), width, like.dtype)

    def _buffers_for(self, rows_WW: np.ndarray, row_bytes: int) -> SharedBuffers | None:
        """The boxes of this swap, large enough; None where memory cannot be shared.

        Two sets take turns: who writes into one has met everybody since it was last read. All workers know how much
        each of them is to get, so they make larger boxes at the same swap.
        """
        if not self._share:
            return None
        needed = int(rows_WW.sum(0).max()) * row_bytes
        if not self._buffers or self._buffers[0].size < needed:
            self._buffers = []
            made = [SharedBuffers.open(size_for(needed), self.rank, self._tell) for _ in range(2)]
            self._share = None not in made
            if not self._share:
                return None
            self._buffers = made
        self._turn ^= 1
        return self._buffers[self._turn]

    def _tell(self, word: str) -> list[str]:
        said = [""] * self.workers
        dist.all_gather_object(said, word)
        return said

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
