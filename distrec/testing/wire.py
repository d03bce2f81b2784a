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
    names = ["all_to_all_single", "all_gather", "all_gather_into_tensor", "all_gather_single"]
    originals = {name: getattr(dist, name) for name in names if hasattr(dist, name)}

    def count_all_to_all(output: Tensor, rows: Tensor, received: list[int], splits: list[int], **options: Any) -> Any:
        away = sum(splits) - splits[dist.get_rank()]
        sent.append(away * (rows[0].numel() if len(rows) else 0) * rows.element_size())
        return originals["all_to_all_single"](output, rows, received, splits, **options)

    def counted_gather(name: str) -> Any:
        def count(output: Any, tensor: Tensor, **options: Any) -> Any:
            sent.append((dist.get_world_size() - 1) * tensor.numel() * tensor.element_size())
            return originals[name](output, tensor, **options)

        return count

    for name in originals:
        setattr(dist, name, count_all_to_all if name == "all_to_all_single" else counted_gather(name))
    try:
        yield sent
    finally:
        for name, original in originals.items():
            setattr(dist, name, original)
