"""Initial rows: a function of (seed, table, bucket, row) that does not depend on the number of workers."""

import zlib

import numpy as np
import torch
from torch import Tensor

from distrec.core.randomness import Purpose, generator
from distrec.sharding.partition import Partition


def normal_rows(seed: int, table: str, partition: Partition, worker: int, dim: int, std: float) -> Tensor:
    """Return a worker's shard of normal rows with standard deviation `std`, (V_local, dim) float32.

    Each bucket has a stream of its own, so that a worker draws only the rows it owns.
    """
    rows_VD = np.empty((partition.size(worker), dim), np.float32)
    owned = partition.owned_buckets(worker)
    for k, bucket in enumerate(owned):
        rows_of_bucket = rows_VD[k :: len(owned)]  # consecutive rows of a shard lie in consecutive buckets
        draws = generator(seed, Purpose.INIT, zlib.crc32(table.encode()), bucket)
        rows_of_bucket[:] = draws.standard_normal(rows_of_bucket.shape, np.float32)
    return torch.from_numpy(rows_VD * np.float32(std))
