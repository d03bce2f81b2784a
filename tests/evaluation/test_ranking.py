"""Sharded ranking against a loop over users and items, on 1, 2 and 3 workers."""

import numpy as np
import pytest
import torch

from distrec.evaluation import ranking
from distrec.kernels.numba import topk as kernel
from distrec.models.base import Scorer
from distrec.sharding.collectives import Exchange
from distrec.sharding.partition import Partition
from distrec.testing.ranks import run_ranks

USERS, ITEMS, DIM, BUCKETS = 23, 41, 4, 5


def make_case():
    """Return users, items and known pairs. Small integers as coordinates: exact scores, many ties. User 3 knows every
    item, user 4 none."""
    draws = np.random.default_rng(0)
    users, items = draws.integers(-1, 2, (USERS, DIM)), draws.integers(-1, 2, (ITEMS, DIM))
    known = draws.random((USERS, ITEMS)) < 0.2
    known[3], known[4] = True, False
    return users, items, known


def make_candidates():
    """Return which items to rank: not the best of many, some of each worker's, none of one bucket."""
    candidates = np.random.default_rng(1).random(ITEMS) < 0.6
    candidates[2::BUCKETS] = False
    return candidates


def brute_force(k, candidates=None):
    users, items, known = make_case()
    if candidates is not None:
        known = known | ~candidates
    lists = []
    for u in range(USERS):
        candidates = sorted((-int(users[u] @ items[i]), i) for i in range(ITEMS) if not known[u, i])
        ids = [i for _, i in candidates[:k]]
        lists.append(ids + [-1] * (k - len(ids)))
    return lists


def rank_own(k, block, candidates=None, by_scores=False, shares=None):
    """Rank for this worker's users, in small blocks and tiles. Returns pairs of global user and list."""
    exchange = Exchange(torch.device("cpu"))
    users, items, known = make_case()
    user_partition, item_partition = (Partition(rows, BUCKETS, exchange.workers) for rows in (USERS, ITEMS))
    own_users = user_partition.rows_of(exchange.rank)
    own_items = torch.from_numpy(items[item_partition.rows_of(exchange.rank)]).float()
    pairs = ranking.UserItemPairs(*np.nonzero(known[own_users]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranking, "_BLOCK_ITEMS", block)
        patch.setattr(kernel, "USERS", 4)
        patch.setattr(kernel, "ITEMS", 35)
        patch.setitem(ranking._SCORES, "cpu", 3 * block)
        patch.setattr(ranking, "_USERS", 4)
        rows, of_items, note = (
            torch.from_numpy(users[own_users]).float(),
            items,
            ([] if shares is None else shares).append,
        )
        if by_scores:

            class Products(Scorer):
                def scores(self, users, items, out_UV):
                    out_UV.copy_(rows[users] @ torch.from_numpy(of_items[items]).float().T)

            ranked = ranking.rank_scores(Products(), np.arange(len(rows)), pairs, ITEMS, exchange, k, candidates, note)[
                1
            ]
        else:
            ranked = ranking.rank(rows, pairs, own_items, item_partition, exchange, k, candidates, note)[1]
    return list(zip(own_users.tolist(), ranked.tolist(), strict=True))


@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.parametrize(("k", "block"), [(5, 7), (60, 100)])
def test_equal_to_a_loop(workers, k, block):
    found = dict(pair for part in run_ranks(workers, rank_own, k, block) for pair in part)
    assert [found[u] for u in range(USERS)] == brute_force(k)


@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.parametrize("by_scores", [False, True])
def test_candidates_equal_to_a_loop(workers, by_scores):
    candidates = make_candidates()
    found = dict(pair for part in run_ranks(workers, rank_own, 5, 7, candidates, by_scores) for pair in part)
    assert [found[u] for u in range(USERS)] == brute_force(5, candidates)


def test_no_candidate():
    assert {tuple(items) for _, items in rank_own(3, 7, np.zeros(ITEMS, bool))} == {(-1, -1, -1)}
    assert {tuple(items) for _, items in rank_own(3, 7, np.zeros(ITEMS, bool), True)} == {(-1, -1, -1)}


@pytest.mark.parametrize("by_scores", [False, True])
def test_progress_rises_to_one(by_scores):
    shares = []
    rank_own(5, 7, make_candidates(), by_scores, shares)
    assert len(shares) > 5 and shares == sorted(shares) and shares[-1] == 1
