"""Arrays of the host onto the device that holds the rows."""

import warnings
from collections.abc import Sequence
from itertools import accumulate

import numpy as np
import torch

_ALIGNED = 256  # bytes: programs for GPUs read whole lines

# Batches are views of Arrow's read-only memory, and nothing writes to them.
warnings.filterwarnings("ignore", message="The given NumPy array is not writable")


def to_device(arrays: Sequence[np.ndarray], device: torch.device) -> list[torch.Tensor]:
    """The arrays as tensors on a device: views of them on the CPU; on a GPU one copy, for which nobody waits. What has
    16 bits gets 32 on the way.

    From memory that is not pinned the host waits for each copy, and so for all that the GPU has still to do before it.
    """
    hosts = [torch.from_numpy(array) for array in arrays]
    kinds = [torch.int32 if host.dtype == torch.uint16 else host.dtype for host in hosts]
    if device.type != "cuda":
        return [host.to(device, kind) for host, kind in zip(hosts, kinds, strict=True)]
    sizes = [host.numel() * kind.itemsize for host, kind in zip(hosts, kinds, strict=True)]
    starts = list(accumulate((-(-size // _ALIGNED) * _ALIGNED for size in sizes), initial=0))
    pinned = torch.empty(starts[-1], dtype=torch.uint8, pin_memory=True)
    sent = torch.empty_like(pinned, device=device)
    placed = []
    for host, kind, size, start in zip(hosts, kinds, sizes, starts, strict=False):
        pinned[start : start + size].view(kind).copy_(host.reshape(-1))
        placed.append(sent[start : start + size].view(kind).view(host.shape))
    sent.copy_(pinned, non_blocking=True)
    return placed
