"""Compiled top-K lists against plain torch. Coordinates are small integers, so that scores are exact and tie."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distrec.core.errors import UserError
from distrec.evaluation import ranking
from distrec.evaluation.ranking import UserItemPairs, add_block, add_block_reference
from distrec.kernels.numba import topk as kernel
from distrec.sharding.collectives import Exchange
from distrec.sharding.partition import Partition


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    """Tiles of whole vectors and a remainder, and users in several tiles."""
    monkeypatch.setattr(kernel, "USERS", 3)
    monkeypatch.setattr(kernel, "ITEMS", 75)


@st.composite
def cases(draw):
    """Return (users, items, known, k) with many ties."""
    users, width, dim = draw(st.integers(0, 7)), draw(st.integers(1, 200)), draw(st.integers(1, 3))
    rng, levels = np.random.default_rng(draw(st.integers(0, 2**20))), draw(st.integers(0, 5))
    dtype = draw(st.sampled_from([torch.float32, torch.float64]))
    rows = [torch.from_numpy(rng.integers(-levels, levels + 1, (n, dim))).to(dtype) for n in (users, width)]
    known = rng.random((users, width)) < draw(st.sampled_from([0.0, 0.3, 1.0]))
    return *rows, known, draw(st.sampled_from([1, 2, 5, 20, 210]))


def lists(add, users_UD, items_VD, known_UV, k, parts=(slice(None),)):
    """Return the lists after adding the items of each part in turn."""
    ids_V = torch.arange(len(items_VD)) * 3 + 1
    best = (users_UD.new_full((len(users_UD), k), -torch.inf), torch.full((len(users_UD), k), -1))
    for part in parts:
        add(best, users_UD, items_VD[part], ids_V[part], UserItemPairs(*np.nonzero(known_UV[:, part])))
    return best


def same(a, b):
    return torch.equal(a[0], b[0]) and torch.equal(a[1], b[1])


@given(cases(), st.integers(1, 4), st.randoms())
@settings(max_examples=150, deadline=None)
def test_equals_plain_torch_in_any_order_of_items(case, workers, random):
    parts = [slice(w, None, workers) for w in range(min(workers, len(case[1])))]
    random.shuffle(parts)
    assert same(lists(add_block, *case, parts), lists(add_block_reference, *case))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.long
def test_bit_equal_over_threads(dtype):
    torch.manual_seed(0)
    users, items, before = torch.randn(50, 16, dtype=dtype), torch.randn(900, 16, dtype=dtype), torch.get_num_threads()
    known, found = np.random.default_rng(0).random((50, 900)) < 0.1, []
    for threads in (1, 2, 1):
        torch.set_num_threads(threads)
        found.append(lists(add_block, users, items, known, 20))
    torch.set_num_threads(before)
    assert same(found[0], found[1]) and same(found[0], found[2])
    assert torch.equal(found[0][1], lists(add_block_reference, users, items, known, 20)[1])


@pytest.mark.parametrize("column", [0, 31, 32, 74, 80, 149, 150, 199])
def test_nan_is_an_error_unless_masked(column):
    users, items, known = torch.ones(5, 2), torch.ones(200, 2), np.zeros((5, 200), bool)
    items[column] = torch.nan
    with pytest.raises(UserError, match="a score is NaN"):
        lists(add_block, users, items, known, 5)
    known[:, column] = True
    assert same(lists(add_block, users, items, known, 5), lists(add_block_reference, users, items, known, 5))


@pytest.mark.parametrize("add", [add_block, add_block_reference])
def test_infinities_and_signed_zeros(add):
    items = torch.tensor([0.0, -0.0, 1e4, -1e4, 3e38, -3e38, torch.inf, -torch.inf] * 20)[:, None]
    scores, ids = lists(add, torch.ones(4, 1), items, np.zeros((4, 160), bool), 150)
    assert (
        ids[0].tolist()
        == [3 * (8 * n + of) + 1 for of in (6, 4, 2) for n in range(20)]
        + sorted(3 * (8 * n + of) + 1 for of in (0, 1) for n in range(20))
        + [3 * (8 * n + of) + 1 for of in (3, 5) for n in range(20)]
        + [-1] * 10
    )
    assert scores[0, 140:].tolist() == [-torch.inf] * 10


def test_known_items_in_any_order_with_and_without_the_kernel(monkeypatch):
    rng = np.random.default_rng(1)
    users, items = (torch.from_numpy(rng.integers(-3, 4, (n, 3))).float() for n in (9, 200))
    known = rng.random((9, 200)) < 0.3
    row, item = np.nonzero(known)
    shuffled = np.lexsort((rng.random(len(row)), row))
    pairs = UserItemPairs(row[shuffled], item[shuffled].astype(np.int32))
    found = []
    for longest in (0, 256):
        monkeypatch.setattr(ranking, "_LONGEST", longest)
        found.append(ranking.rank(users, pairs, items, Partition(200, 4, 1), Exchange(torch.device("cpu")), 20)[1])
    assert torch.equal(*found)
