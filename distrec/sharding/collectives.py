"""Collectives: rows are fetched from their owners, gradients are returned to them. The only user of torch.distributed.

A step needs three exchanges: the indices of the rows (ahead of the step), the rows, and their gradients. Workers of one
machine exchange rows through shared memory. With one worker nothing is exchanged or copied.

A: row requests that a worker receives, with repeats; R: the distinct rows among them.
"""

import math
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import reduce

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from distrec.core.buffer_pool import empty
from distrec.kernels.dedup import unique_ids
from distrec.sharding.device_copy import to_device
from distrec.sharding.shared_memory import SharedBuffers, size_for


@dataclass(frozen=True)
class LookupPlan:
    """Routing of one look-up of rows and of the return of their gradients."""

    rows_R: Tensor
    """Local indices of this worker's rows that are requested, distinct, int64."""
    row_index_A: Tensor | None
    """Index into `rows_R` of each request, by rank of the requesting worker. None with one worker."""
    gradient_index_WR: np.ndarray | None
    """Index of each worker's gradient of each of `rows_R`, int32, -1 where it has none: for this worker among its own
    gradients, for the others among the received ones. None with one worker."""
    requested_WW: np.ndarray
    """Number of rows that each worker (first axis) requests of each."""


class Exchange:
    """The collectives of a group of workers. All workers must make the same calls in the same order."""

    def __init__(self, device: torch.device, send_bfloat16: bool = False, share_memory: bool = True) -> None:
        """
        Args:
            device: device of the tensors that are exchanged.
            send_bfloat16: send rows as bfloat16. One worker rounds them too, so that results do not depend on W.
            share_memory: exchange rows through shared memory where it is available.
        """
        grouped = dist.is_available() and dist.is_initialized()
        self.rank = dist.get_rank() if grouped else 0
        self.workers = dist.get_world_size() if grouped else 1
        self.device = device
        self.send_bfloat16 = send_bfloat16
        # Row indices are computed and used on the host, ahead of the step: they have a process group of their own.
        self._host_group = dist.new_group(backend="gloo") if self.workers > 1 else None
        self._share_memory = share_memory and self.workers > 1 and device.type == "cpu"
        self._buffer_sets: list[SharedBuffers] = []
        self._next_set = 0
        self._buffers_for(np.zeros((self.workers, self.workers), np.int64), 0)  # now, so that `transport` is known

    @property
    def transport(self) -> str:
        """Transport of the rows, for log messages."""
        return "shared memory" if self._share_memory else dist.get_backend()

    def plan_lookup(self, requested_U: np.ndarray, requested_splits: Sequence[int]) -> Future[LookupPlan]:
        """Send the row requests of a step to the owners. Runs in a thread; only one plan may be in progress.

        Args:
            requested_U: local indices at their owners, distinct, ordered by owner, int32.
            requested_splits: number of them that each worker owns, (W,).
        """
        plan: Future[LookupPlan] = Future()
        if self.workers == 1:
            (rows_R,) = to_device([requested_U], self.device)
            plan.set_result(LookupPlan(rows_R.long(), None, None, np.array([requested_splits])))
        else:
            # A daemon: if a peer is lost, the process can end before this exchange times out.
            arguments = (plan, requested_U, requested_splits)
            threading.Thread(target=self._plan_lookup, args=arguments, daemon=True).start()
        return plan

    def _plan_lookup(self, plan: Future[LookupPlan], requested_U: np.ndarray, requested_splits: Sequence[int]) -> None:
        try:
            requested_WW = torch.empty(self.workers, self.workers, dtype=torch.int64)
            dist.all_gather(list(requested_WW), torch.tensor(requested_splits), group=self._host_group)
            received_splits = requested_WW[:, self.rank].tolist()
            received_A, sent_U = torch.empty(sum(received_splits), dtype=torch.int32), torch.from_numpy(requested_U)
            dist.all_to_all_single(received_A, sent_U, received_splits, list(requested_splits), group=self._host_group)
            rows_R, row_index_A = unique_ids(received_A.numpy(), int(received_A.max()) + 1 if len(received_A) else 0)
            plan.set_result(
                LookupPlan(
                    torch.from_numpy(rows_R).to(self.device).long(),
                    torch.from_numpy(row_index_A).to(self.device).long(),
                    self._gradient_index(row_index_A, len(rows_R), requested_WW.numpy()),
                    requested_WW.numpy(),
                )
            )
        except BaseException as error:
            plan.set_exception(error)

    def _gradient_index(self, row_index_A: np.ndarray, rows: int, requested_WW: np.ndarray) -> np.ndarray:
        """Return `LookupPlan.gradient_index_WR`."""
        gradient_index_WR = np.full((self.workers, rows), -1, np.int32)
        counts_W = requested_WW[:, self.rank]
        for rank, (end, count) in enumerate(zip(counts_W.cumsum(), counts_W, strict=True)):
            first = requested_WW[rank, :rank].sum() if rank == self.rank else end - count
            gradient_index_WR[rank, row_index_A[end - count : end]] = np.arange(first, first + count)
        return gradient_index_WR

    def fetch(self, plan: LookupPlan, rows_RD: Tensor, exact: bool = False) -> Tensor:
        """Return the requested rows from their owners, (U, D), in the order of the request.

        Args:
            plan: plan of this look-up.
            rows_RD: this worker's values for `plan.rows_R`. Not modified; with one worker not copied either.
            exact: send them in their own dtype in any case, for gradients.
        """
        rounded = self.send_bfloat16 and not exact
        sent_RD = rows_RD.bfloat16() if rounded else rows_RD
        if plan.row_index_A is not None:
            row_index = torch.split(plan.row_index_A, plan.requested_WW[:, self.rank].tolist())

            def pack(rank: int, out: Tensor) -> None:
                torch.index_select(sent_RD, 0, row_index[rank], out=out)

            sent_RD = self._all_to_all(pack, plan.requested_WW.T, sent_RD)
        return sent_RD.to(rows_RD.dtype)

    def sum_gradients(self, plan: LookupPlan, grad_UD: Tensor) -> Tensor:
        """Return gradients to the owners and sum them for each of `plan.rows_R`, (R, D).

        A row's gradients are added in the order of the ranks, so that the sum is the same in every run.
        """
        if plan.gradient_index_WR is None:
            return grad_UD
        parts = torch.split(grad_UD, plan.requested_WW[self.rank].tolist())

        def pack(rank: int, out: Tensor) -> None:
            if rank != self.rank:  # this worker's own part is read from `grad_UD`
                out.copy_(parts[rank])

        received_AD = self._all_to_all(pack, plan.requested_WW, grad_UD, view=True)
        if self.device.type == "cpu":
            from distrec.kernels.numba.gradient_sums import add_parts  # here: importing numba takes 0.3 s

            return add_parts(received_AD, grad_UD, self.rank, plan.gradient_index_WR)
        sums_RD = grad_UD.new_zeros(len(plan.rows_R), grad_UD.shape[1])
        for rank, index_R in enumerate(torch.from_numpy(plan.gradient_index_WR)):
            rows = (index_R >= 0).nonzero().squeeze(1)
            source = grad_UD if rank == self.rank else received_AD
            index, rows = index_R[rows].to(self.device), rows.to(self.device)
            sums_RD.index_add_(0, rows, source.index_select(0, index))  # rows are distinct within one worker's part
        return sums_RD

    def _all_to_all(
        self, pack: Callable[[int, Tensor], None], rows_WW: np.ndarray, like: Tensor, view: bool = False
    ) -> Tensor:
        """Send rows to every worker. Return the rows received from all of them, by rank.

        Args:
            pack: writes this worker's rows for a rank into a tensor; what it does not write is undefined.
            rows_WW: number of rows that each worker (first axis) sends to each.
            like: a tensor of the width and dtype of the rows.
            view: the result may lack this worker's own rows, and be valid only until the second exchange after this
                one: a view of a shared buffer that other workers then overwrite.
        """
        receive, width = rows_WW[:, self.rank].tolist(), like.shape[1]
        buffers = self._buffers_for(rows_WW, width * like.itemsize)
        if buffers is not None:
            return self._all_to_all_shared(buffers, pack, rows_WW, like, view)
        send = rows_WW[self.rank].tolist()
        sent, received = like.new_empty(sum(send), width), like.new_empty(sum(receive), width)
        for rank, part in enumerate(torch.split(sent, send)):
            pack(rank, part)
        # As bytes, because not every backend supports bfloat16.
        dist.all_to_all_single(received.view(torch.uint8), sent.view(torch.uint8), receive, send)
        return received

    def _all_to_all_shared(
        self, buffers: SharedBuffers, pack: Callable[[int, Tensor], None], rows_WW: np.ndarray, like: Tensor, view: bool
    ) -> Tensor:
        receive, width = rows_WW[:, self.rank].tolist(), like.shape[1]
        starts_W = (rows_WW.cumsum(0) - rows_WW)[self.rank] * width * like.itemsize
        others = [rank for rank in range(self.workers) if rank != self.rank]
        for rank in others:
            pack(rank, buffers.tensor(rank, starts_W[rank], rows_WW[self.rank, rank], width, like.dtype))
        buffers.barrier_arrive()
        shared = buffers.tensor(self.rank, 0, sum(receive), width, like.dtype)
        if view:
            buffers.barrier_wait()
            return shared
        received = empty([sum(receive), width], like)
        parts, shared_parts = torch.split(received, receive), torch.split(shared, receive)
        pack(self.rank, parts[self.rank])  # while other workers may still write their parts
        buffers.barrier_wait()
        for rank in others:
            parts[rank].copy_(shared_parts[rank])
        return received

    def _buffers_for(self, rows_WW: np.ndarray, row_bytes: int) -> SharedBuffers | None:
        """Return shared buffers for an exchange, large enough; None where memory cannot be shared.

        Two sets alternate: between the last read of a set and the next write to it lies a barrier of the other set. All
        workers know how many rows each of them receives, so that all enlarge their buffers at the same exchange.
        """
        if not self._share_memory:
            return None
        needed = int(rows_WW.sum(0).max()) * row_bytes
        if not self._buffer_sets or self._buffer_sets[0].size < needed:
            self._buffer_sets = []  # freed before larger ones are allocated
            opened = [SharedBuffers.open(size_for(needed), self.rank, self._all_gather_str) for _ in range(2)]
            self._share_memory = None not in opened
            if not self._share_memory:
                return None
            self._buffer_sets = [buffers for buffers in opened if buffers is not None]
        self._next_set ^= 1
        return self._buffer_sets[self._next_set]

    def _all_gather_str(self, text: str) -> list[str]:
        texts = [""] * self.workers
        dist.all_gather_object(texts, text)
        return texts

    def broadcast(self, tensor: Tensor, source: int) -> Tensor:
        """Copy the tensor of worker `source` into the tensors of all workers. Return this worker's."""
        if self.workers > 1:
            dist.broadcast(tensor, source)
        return tensor

    def gather(self, part: Tensor, lengths: Sequence[int] | None = None) -> tuple[Tensor, slice]:
        """Return (the parts of all workers, concatenated; the slice of this worker). Parts may differ in length.

        Args:
            part: this worker's part, (n, ...). With one worker not copied.
            lengths: lengths of the parts of all workers, (W,), from `part_lengths`; None: exchange them here.
        """
        if self.workers == 1:
            return part, slice(0, len(part))
        lengths, rows = lengths or self.part_lengths(len(part)), _matrix(part)

        def pack(rank: int, out: Tensor) -> None:
            out.copy_(rows)

        sent_WW = np.repeat(np.array(lengths)[:, None], self.workers, 1)
        start, whole = sum(lengths[: self.rank]), self._all_to_all(pack, sent_WW, rows)
        return whole.view(sum(lengths), *part.shape[1:]), slice(start, start + len(part))

    def part_lengths(self, length: int) -> list[int]:
        """Return the lengths of the parts of all workers, by rank."""
        if self.workers == 1:
            return [length]
        lengths: list[int] = torch.stack(self._all_gather(torch.tensor(length, device=self.device))).tolist()
        return lengths

    def sum_parts(self, whole: Tensor, lengths: Sequence[int]) -> Tensor:
        """Return the sum over the workers of this worker's part of `whole`: the transpose of `gather`.

        Args:
            whole: this worker's values for the concatenated parts, (sum of `lengths`, ...). With one worker not copied.
            lengths: lengths of the parts of all workers, (W,).

        Returns:
            (n, ...), added in the order of the ranks.
        """
        if self.workers == 1:
            return whole
        rows = _matrix(whole)
        parts = torch.split(rows, list(lengths))

        def pack(rank: int, out: Tensor) -> None:
            out.copy_(parts[rank])

        received = self._all_to_all(pack, np.tile(lengths, (self.workers, 1)), rows)
        return reduce(torch.add, received.view(self.workers, lengths[self.rank], *whole.shape[1:]).unbind())

    def all_add(self, tensor: Tensor) -> Tensor:
        """Return the sum over the workers, added in the order of the ranks. With one worker not copied."""
        return reduce(torch.add, self._all_gather(tensor)) if self.workers > 1 else tensor

    def all_max(self, tensor: Tensor) -> Tensor:
        """Return the elementwise maximum over the workers."""
        return tensor if self.workers == 1 else torch.stack(self._all_gather(tensor)).amax(0)

    def all_sum(self, values: Sequence[float]) -> list[float]:
        """Return the sum of each value over the workers, in float64, added in the order of the ranks."""
        if self.workers == 1:
            return list(values)
        return self.all_add(torch.tensor(values, dtype=torch.float64, device=self.device)).tolist()

    def _all_gather(self, tensor: Tensor) -> list[Tensor]:
        tensors = [torch.empty_like(tensor) for _ in range(self.workers)]
        dist.all_gather(tensors, tensor.contiguous())
        return tensors


def _matrix(tensor: Tensor) -> Tensor:
    """Return a tensor (n, ...) as rows of numbers, (n, D)."""
    return tensor.reshape(len(tensor), math.prod(tensor.shape[1:]))
