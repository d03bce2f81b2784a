"""Arrays of the host onto the device that holds the rows."""

from collections.abc import Sequence
from itertools import accumulate

import numpy as np
import torch

_ALIGNED = 256  # bytes: programs for GPUs read whole lines


def place(arrays: Sequence[np.ndarray], device: torch.device) -> list[torch.Tensor]:
    """The arrays as tensors on a device: views of them on the CPU; on a GPU one copy, for which nobody waits.

    From memory that is not pinned the host waits for each copy, and so for all that the GPU has still to do before it.
    """
    hosts = [torch.from_numpy(array) for array in arrays]
    if device.type != "cuda":
        return [host.to(device) for host in hosts]
    starts = list(accumulate((-(-host.nbytes // _ALIGNED) * _ALIGNED for host in hosts), initial=0))
    pinned = torch.empty(starts[-1], dtype=torch.uint8, pin_memory=True)
    for host, start in zip(hosts, starts, strict=False):
        pinned[start : start + host.nbytes].view(host.dtype).copy_(host.reshape(-1))
    sent = pinned.to(device, non_blocking=True)
    return [
        sent[start : start + host.nbytes].view(host.dtype).view(host.shape)
        for host, start in zip(hosts, starts, strict=False)
    ]
