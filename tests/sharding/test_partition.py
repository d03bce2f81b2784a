"""The partition equals the mapping of its definition, row by row."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from distrec.sharding.partition import Partition


@st.composite
def partitions(draw):
    buckets = draw(st.integers(1, 20))
    return Partition(draw(st.integers(0, 200)), buckets, draw(st.integers(1, buckets)))


@given(partitions())
def test_rows_are_partitioned_by_definition(partition):
    owned = {
        w: [r for r in range(partition.rows) if (r % partition.buckets) % partition.workers == w]
        for w in range(partition.workers)
    }
    for worker, rows in owned.items():
        assert partition.rows_of(worker).tolist() == rows
        assert partition.size(worker) == len(rows)
        assert partition.owner(np.array(rows, np.int64)).tolist() == [worker] * len(rows)
        assert partition.local(np.array(rows, np.int64)).tolist() == list(range(len(rows)))
        assert partition.local(torch.tensor(rows, dtype=torch.int32)).tolist() == list(range(len(rows)))
        assert partition.row(torch.arange(len(rows)), worker).tolist() == rows


@given(partitions())
def test_every_bucket_has_one_owner(partition):
    buckets = sorted(p for w in range(partition.workers) for p in partition.owned_buckets(w))
    assert buckets == list(range(partition.buckets))
