"""Copies of host arrays to the device of the tables."""

import warnings
from collections.abc import Sequence
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

_ALIGNMENT = 256  # bytes: GPU kernels read whole memory lines

# Batches are views of Arrow's read-only memory, and nothing writes to them.
warnings.filterwarnings("ignore", message="The given NumPy array is not writable")


def to_device(arrays: Sequence[np.ndarray], device: torch.device) -> list[Tensor]:
    """Return the arrays as tensors on a device: views on the CPU, one asynchronous copy on a GPU. uint16 becomes int32.

    The copy is made from pinned memory: from pageable memory it would wait for all pending work of the GPU.
    """
    hosts = [torch.from_numpy(array) for array in arrays]
    dtypes = [torch.int32 if host.dtype == torch.uint16 else host.dtype for host in hosts]
    if device.type != "cuda":
        return [host.to(device, dtype) for host, dtype in zip(hosts, dtypes, strict=True)]
    sizes = [host.numel() * dtype.itemsize for host, dtype in zip(hosts, dtypes, strict=True)]
    starts = list(accumulate((-(-size // _ALIGNMENT) * _ALIGNMENT for size in sizes), initial=0))
    pinned = torch.empty(starts[-1], dtype=torch.uint8, pin_memory=True)
    sent = torch.empty_like(pinned, device=device)
    tensors = []
    for host, dtype, size, start in zip(hosts, dtypes, sizes, starts, strict=False):
        pinned[start : start + size].view(dtype).copy_(host.reshape(-1))
        tensors.append(sent[start : start + size].view(dtype).view(host.shape))
    sent.copy_(pinned, non_blocking=True)
    return tensors
