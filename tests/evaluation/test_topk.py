"""Top-K blocks and merges against a full sort."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distrec.core.errors import UserError
from distrec.evaluation.topk import _largest, merge_topk, topk_block


def lexsort_topk(scores_BV, ids_V, k):
    """Oracle: sort every row by (-score, id)."""
    scores, ids = scores_BV.numpy(), ids_V.numpy()
    best = np.full((len(scores), k), -np.inf, scores.dtype)
    best_ids = np.full((len(scores), k), -1)
    for row, values in enumerate(scores):
        order = [c for c in np.lexsort((ids, -values)) if values[c] > -np.inf][:k]
        best[row, : len(order)], best_ids[row, : len(order)] = values[order], ids[order]
    return torch.from_numpy(best), torch.from_numpy(best_ids)


def check(scores_BV, ids_V, k):
    got, want = topk_block(scores_BV, ids_V, k), lexsort_topk(scores_BV, ids_V, k)
    assert got[0].shape == got[1].shape == (len(scores_BV), k)
    assert torch.equal(got[1], want[1])
    assert torch.equal(got[0], want[0])
    return got


@st.composite
def blocks(draw):
    """Return scores with few distinct values, so that ties are frequent, and masks; ids with gaps."""
    rows, width, seed = draw(st.integers(0, 5)), draw(st.integers(0, 40)), draw(st.integers(0, 2**20))
    generator = torch.Generator().manual_seed(seed)
    levels = draw(st.integers(1, 8))
    scores = torch.randint(-levels, levels + 1, (rows, width), generator=generator).to(torch.float32) / 2
    scores[torch.rand(rows, width, generator=generator) < draw(st.sampled_from([0.0, 0.3, 1.0]))] = -torch.inf
    ids = (torch.randint(1, 5, (width,), generator=generator)).cumsum(0)
    return scores, ids


@given(blocks(), st.integers(1, 45))
@settings(max_examples=300, deadline=None)
def test_equals_full_lexsort(block, k):
    check(*block, k)


@given(blocks(), st.integers(1, 12), st.integers(1, 4), st.randoms())
@settings(max_examples=150, deadline=None)
def test_merged_parts_equal_the_whole(block, k, parts, random):
    scores, ids = block
    lists = [topk_block(scores[:, part::parts], ids[part::parts], k) for part in range(parts)]
    random.shuffle(lists)
    merged = lists[0]
    for other in lists[1:]:
        merged = merge_topk(merged, other, k)
    want = lexsort_topk(scores, ids, k)
    assert torch.equal(merged[0], want[0]) and torch.equal(merged[1], want[1])


@pytest.mark.parametrize("levels", [1, 3, 200, 10**6])
@pytest.mark.parametrize("width", [64 * 8 * 6, 64 * 8 * 6 + 1, 5003])
def test_wide_rows_use_column_groups(levels, width):
    scores = torch.randint(0, levels, (9, width), generator=torch.Generator().manual_seed(levels)).float()
    scores[0] = -torch.inf
    scores[1, 3:] = -torch.inf
    scores[2, -1] = levels + 1.0
    check(scores, torch.arange(width) * 3 + 7, 5)
    assert torch.equal(_largest(scores, 6)[0], scores.topk(6).values)


def test_signed_zeros_tie_and_extremes_are_ordered():
    scores = torch.tensor([[0.0, -0.0, 1e4, -1e4, 3e38, -3e38, torch.inf]])
    assert topk_block(scores, torch.arange(7), 7)[1].tolist() == [[6, 4, 2, 0, 1, 3, 5]]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_float_types(dtype):
    scores = torch.randint(0, 9, (4, 50), generator=torch.Generator().manual_seed(1))
    got, want = topk_block(scores.to(dtype), torch.arange(50), 6), lexsort_topk(scores.float(), torch.arange(50), 6)
    assert got[0].dtype == dtype and torch.equal(got[1], want[1])


def test_nan_is_an_error_and_the_block_is_not_changed():
    scores = torch.randn(3, 6000)
    before = scores.clone()
    topk_block(scores, torch.arange(6000), 20)
    assert torch.equal(scores, before)
    scores[1, 77] = torch.nan
    with pytest.raises(UserError, match="NaN"):
        topk_block(scores, torch.arange(6000), 20)


def test_non_contiguous_columns():
    scores = torch.randint(0, 30, (5000, 4), generator=torch.Generator().manual_seed(2)).float().T
    check(scores, torch.arange(5000), 7)
