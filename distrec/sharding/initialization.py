"""Memory for rows, and their initial values: a function of (seed, table, bucket, row) on any number of workers."""

import math
import zlib

import numpy as np
import torch

from distrec.core.randomness import Purpose, generator
from distrec.sharding.partition import Partition

_HUGE = 2**21  # bytes of a huge page


def normal_rows(seed: int, table: str, partition: Partition, worker: int, dim: int, std: float) -> torch.Tensor:
    """A worker's shard of normal rows with standard deviation `std`, (V_local, dim) float32.

    A bucket is drawn as one run, so that a worker draws only the rows it owns.
    """
    rows_VD = np.empty((partition.size(worker), dim), np.float32)
    owned = partition.owned_buckets(worker)
    for k, bucket in enumerate(owned):
        rows_of_bucket = rows_VD[k :: len(owned)]  # the order of the shard goes through the buckets in turn
        draws = generator(seed, Purpose.INIT, zlib.crc32(table.encode()), bucket)
        rows_of_bucket[:] = draws.standard_normal(rows_of_bucket.shape, np.float32)
    return torch.from_numpy(rows_VD * np.float32(std))


def zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Zeros, one entry a row.

    On the host they lie in huge pages, where the system gives them on request: numpy asks for them, from 4 MiB on, and
    torch does not. Without them touching rows all over a table of 10 million waits for the page tables
    (benchmarks/optimizer.py: twice as long).
    """
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    kind = torch.empty(0, dtype=dtype).numpy().dtype
    needed = math.prod(shape) * kind.itemsize
    if needed < _HUGE:
        return torch.from_numpy(np.zeros(shape, kind))
    memory = np.zeros(-(-needed // _HUGE) * _HUGE + _HUGE, np.uint8)  # whole pages, wherever the first one begins
    start = -memory.ctypes.data % _HUGE
    return torch.from_numpy(memory[start : start + needed].view(kind).reshape(shape))
