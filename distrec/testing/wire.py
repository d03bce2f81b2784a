"""Counting what a process sends through torch.distributed. The collectives themselves run as they are."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch.distributed as dist
from torch import Tensor


@contextmanager
def counted_bytes() -> Iterator[list[int]]:
    """Yield a list to which each collective that runs in the block appends the bytes sent to other processes.

    An all-gather sends the tensor to each of them, an all-to-all the parts that are not for this process.
    """
    sent: list[int] = []
    all_to_all, all_gather = dist.all_to_all_single, dist.all_gather

    def count_all_to_all(output: Tensor, rows: Tensor, received: list[int], splits: list[int], **options: Any) -> Any:
        away = sum(splits) - splits[dist.get_rank()]
        sent.append(away * (rows[0].numel() if len(rows) else 0) * rows.element_size())
        return all_to_all(output, rows, received, splits, **options)

    def count_all_gather(tensors: list[Tensor], tensor: Tensor, **options: Any) -> Any:
        sent.append((dist.get_world_size() - 1) * tensor.numel() * tensor.element_size())
        return all_gather(tensors, tensor, **options)

    dist.all_to_all_single, dist.all_gather = count_all_to_all, count_all_gather  # type: ignore[assignment]
    try:
        yield sent
    finally:
        dist.all_to_all_single, dist.all_gather = all_to_all, all_gather
