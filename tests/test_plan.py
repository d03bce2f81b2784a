"""The plan is arithmetic: compare it with the mapping written out row by row."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from distrec.plan import Plan


@st.composite
def plans(draw):
    buckets = draw(st.integers(1, 20))
    return Plan(draw(st.integers(0, 200)), buckets, draw(st.integers(1, buckets)))


@given(plans())
def test_rows_are_split_as_the_definition_says(plan):
    owned = {w: [r for r in range(plan.rows) if (r % plan.buckets) % plan.workers == w] for w in range(plan.workers)}
    for worker, rows in owned.items():
        assert plan.rows_of(worker).tolist() == rows
        assert plan.size(worker) == len(rows)
        assert plan.owner(np.array(rows, np.int64)).tolist() == [worker] * len(rows)
        assert plan.local(np.array(rows, np.int64)).tolist() == list(range(len(rows)))
        assert plan.local(torch.tensor(rows, dtype=torch.int32)).tolist() == list(range(len(rows)))
        assert plan.row(torch.arange(len(rows)), worker).tolist() == rows


@given(plans())
def test_every_bucket_has_one_owner(plan):
    buckets = sorted(p for w in range(plan.workers) for p in plan.owned_buckets(w))
    assert buckets == list(range(plan.buckets))
