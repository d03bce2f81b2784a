"""Collectives: rows are fetched from their owners, gradients are returned to them. The only user of torch.distributed.

A step needs three exchanges: the indices of the rows (ahead of the step), the rows, and their gradients. With one
worker nothing is exchanged or copied.

A: row requests that a worker receives, with repeats; R: the distinct rows among them.
"""

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import reduce

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from distrec.core.background import in_background
from distrec.core.buffer_pool import empty
from distrec.kernels.dedup import unique_ids
from distrec.sharding.device_copy import to_device


@dataclass(frozen=True)
class LookupPlan:
    """Routing of one look-up of rows and of the return of their gradients."""

    rows_R: Tensor
    """Local indices of this worker's rows that are requested, distinct, int64."""
    row_index_A: Tensor | None
    """Index into `rows_R` of each request, by rank of the requesting worker. None with one worker."""
    gradient_index_WR: np.ndarray | None
    """Index of each worker's gradient of each of `rows_R` among the received ones, int32, -1 where it has none. None
    with one worker."""
    requested_WW: np.ndarray
    """Number of rows that each worker (first axis) requests of each."""


class Exchange:
    """The collectives of a group of workers. All workers must make the same calls in the same order."""

    def __init__(self, device: torch.device, send_bfloat16: bool = False, alone: bool = False) -> None:
        """
        Args:
            device: device of the tensors that are exchanged.
            send_bfloat16: send rows as bfloat16. One worker rounds them too, so that results do not depend on W.
            alone: exchange nothing with the other workers, if there are any.
        """
        grouped = not alone and dist.is_available() and dist.is_initialized()
        self.rank = dist.get_rank() if grouped else 0
        self.workers = dist.get_world_size() if grouped else 1
        self.device = device
        self.send_bfloat16 = send_bfloat16
        # Row indices are computed and used on the host, ahead of the step: they have a process group of their own.
        self._host_group = dist.new_group(backend="gloo") if self.workers > 1 else None

    def plan_lookup(self, requested_U: np.ndarray, requested_splits: Sequence[int]) -> Future[LookupPlan]:
        """Send the row requests of a step to the owners. Runs in a thread; only one plan may be in progress.

        Args:
            requested_U: local indices at their owners, distinct, ordered by owner, int32.
            requested_splits: number of them that each worker owns, (W,).
        """
        if self.workers == 1:
            (rows_R,) = to_device([requested_U], self.device)
            plan: Future[LookupPlan] = Future()
            plan.set_result(LookupPlan(rows_R.long(), None, None, np.array([requested_splits])))
            return plan
        # Its thread is a daemon: if a peer is lost, the process can end before this exchange times out.
        return in_background(lambda: self._plan_lookup(requested_U, requested_splits), "look-up")

    def _plan_lookup(self, requested_U: np.ndarray, requested_splits: Sequence[int]) -> LookupPlan:
        requested_WW = torch.empty(self.workers, self.workers, dtype=torch.int64)
        dist.all_gather(list(requested_WW), torch.tensor(requested_splits), group=self._host_group)
        received_splits = requested_WW[:, self.rank].tolist()
        received_A, sent_U = torch.empty(sum(received_splits), dtype=torch.int32), torch.from_numpy(requested_U)
        dist.all_to_all_single(received_A, sent_U, received_splits, list(requested_splits), group=self._host_group)
        rows_R, row_index_A = unique_ids(received_A.numpy(), int(received_A.max()) + 1 if len(received_A) else 0)
        return LookupPlan(
            torch.from_numpy(rows_R).to(self.device).long(),
            torch.from_numpy(row_index_A).to(self.device).long(),
            self._gradient_index(row_index_A, len(rows_R), requested_WW[:, self.rank].numpy()),
            requested_WW.numpy(),
        )

    def _gradient_index(self, row_index_A: np.ndarray, rows: int, counts_W: np.ndarray) -> np.ndarray:
        """Return `LookupPlan.gradient_index_WR`, given how many rows each worker requests of this one."""
        gradient_index_WR = np.full((self.workers, rows), -1, np.int32)
        rank_A = np.repeat(np.arange(self.workers), counts_W)
        gradient_index_WR[rank_A, row_index_A] = np.arange(len(row_index_A))
        return gradient_index_WR

    def fetch(self, plan: LookupPlan, rows_RD: Tensor, exact: bool = False) -> Tensor:
        """Return the requested rows from their owners, (U, D), in the order of the request.

        Args:
            plan: plan of this look-up.
            rows_RD: this worker's values for `plan.rows_R`. Not modified; with one worker not copied either.
            exact: send them in their own dtype in any case, for gradients.
        """
        sent_RD = rows_RD.bfloat16() if self.send_bfloat16 and not exact else rows_RD
        if plan.row_index_A is not None:
            sent_AD, requested_WW = sent_RD.index_select(0, plan.row_index_A), plan.requested_WW
            sent_RD = self._all_to_all(sent_AD, requested_WW[:, self.rank], requested_WW[self.rank])
        return sent_RD.to(rows_RD.dtype)

    def sum_gradients(self, plan: LookupPlan, grad_UD: Tensor) -> Tensor:
        """Return gradients to the owners and sum them for each of `plan.rows_R`, (R, D).

        A row's gradients are added in the order of the ranks, so that the sum is the same in every run.
        """
        if plan.gradient_index_WR is None:
            return grad_UD
        received_AD = self._all_to_all(grad_UD, plan.requested_WW[self.rank], plan.requested_WW[:, self.rank])
        if self.device.type == "cpu":
            from distrec.kernels.numba.gradient_sums import add_parts  # here: importing numba takes 0.3 s

            return add_parts(received_AD, plan.gradient_index_WR)
        sums_RD = grad_UD.new_zeros(len(plan.rows_R), grad_UD.shape[1])
        for index_R in torch.from_numpy(plan.gradient_index_WR):
            rows = (index_R >= 0).nonzero().squeeze(1)
            index, rows = index_R[rows].to(self.device), rows.to(self.device)
            sums_RD.index_add_(0, rows, received_AD.index_select(0, index))  # rows are distinct within a worker's part
        return sums_RD

    def _all_to_all(self, rows: Tensor, splits_W: np.ndarray, received_splits_W: np.ndarray) -> Tensor:
        """Send rows to every worker, grouped by rank. Return the rows received from all of them, by rank.

        Args:
            rows: rows to send, (rows, D).
            splits_W: number of rows for each rank.
            received_splits_W: number of rows that each rank sends to this one.
        """
        rows, received = rows.contiguous(), empty([int(received_splits_W.sum()), rows.shape[1]], rows)
        as_bytes = received.view(torch.uint8), rows.view(torch.uint8)  # because not every backend supports bfloat16
        self.all_to_all_into(*as_bytes, received_splits_W.tolist(), splits_W.tolist())
        return received

    def gather_into(self, whole: Tensor, part: Tensor) -> None:
        """Write the parts of all workers, of equal length, into `whole`, by rank."""
        # `all_gather` would copy them once more. The second name is that of torch before 2.13.
        gather = dist.all_gather_single if hasattr(dist, "all_gather_single") else dist.all_gather_into_tensor
        gather(whole, part)

    def all_to_all_into(self, received: Tensor, sent: Tensor, received_splits: list[int], splits: list[int]) -> None:
        """Send the parts of a tensor to the ranks, and write what they send to this one into `received`, by rank."""
        dist.all_to_all_single(received, sent, received_splits, splits)

    def broadcast(self, tensor: Tensor, source: int) -> Tensor:
        """Copy the tensor of worker `source` into the tensors of all workers. Return this worker's."""
        if self.workers > 1:
            dist.broadcast(tensor, source)
        return tensor

    def gather(self, part: Tensor) -> tuple[Tensor, slice]:
        """Return (the parts of all workers, concatenated; the slice of this worker). Parts may differ in length."""
        if self.workers == 1:
            return part, slice(0, len(part))
        lengths_W = torch.cat(self._all_gather(torch.tensor([len(part)], device=self.device))).cpu().numpy()
        rows, start = part.detach().reshape(len(part), part.shape[1:].numel()), lengths_W[: self.rank].sum()
        whole = self._all_to_all(rows.repeat(self.workers, 1), np.full(self.workers, len(part)), lengths_W)
        return whole.view(len(whole), *part.shape[1:]), slice(start, start + len(part))

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
