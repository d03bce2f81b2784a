"""Initial rows do not depend on the number of workers."""

import numpy as np
import torch

from distrec.sharding.initialization import normal_rows
from distrec.sharding.partition import Partition


def whole(rows, buckets, workers, seed=0, table="items"):
    out = torch.empty(rows, 8)
    for worker in range(workers):
        partition = Partition(rows, buckets, workers)
        out[torch.from_numpy(partition.rows_of(worker))] = normal_rows(seed, table, partition, worker, 8, 0.5)
    return out


def test_equal_bits_for_any_number_of_workers():
    for rows in (0, 1, 7, 100):
        one = whole(rows, 8, 1)
        for workers in (2, 3, 8):
            assert torch.equal(whole(rows, 8, workers), one)


def test_rows_depend_on_seed_and_table_and_are_normal():
    rows = whole(5000, 64, 1)
    assert not torch.equal(rows, whole(5000, 64, 1, seed=1))
    assert not torch.equal(rows, whole(5000, 64, 1, table="users"))
    assert len(np.unique(rows.numpy())) > 39_000  # buckets have distinct streams
    assert abs(rows.mean()) < 0.01 and abs(rows.std() - 0.5) < 0.01
    assert abs((rows.abs() < 0.5).float().mean() - 0.6827) < 0.01
