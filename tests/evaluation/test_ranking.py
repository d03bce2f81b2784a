"""The sharded ranking against a loop over users and items, on 1, 2 and 3 workers."""

import numpy as np
import pytest
import torch

from distrec.evaluation import ranking
from distrec.kernels.numba import topk as tiles
from distrec.sharding.collectives import Exchange
from distrec.sharding.partition import Partition
from distrec.testing.ranks import run_ranks

USERS, ITEMS, DIM, BUCKETS = 23, 41, 4, 5


def world():
    """Small integers as coordinates: exact scores, many ties. User 3 knows every item, user 4 none."""
    draws = np.random.default_rng(0)
    users, items = draws.integers(-1, 2, (USERS, DIM)), draws.integers(-1, 2, (ITEMS, DIM))
    known = draws.random((USERS, ITEMS)) < 0.2
    known[3], known[4] = True, False
    return users, items, known


def brute_force(k):
    users, items, known = world()
    lists = []
    for u in range(USERS):
        candidates = sorted((-int(users[u] @ items[i]), i) for i in range(ITEMS) if not known[u, i])
        ids = [i for _, i in candidates[:k]]
        lists.append(ids + [-1] * (k - len(ids)))
    return lists


def rank_mine(k, block):
    """Ranks this worker's users; returns (global user, list) pairs."""
    ranking._BLOCK_ITEMS, tiles.USERS, tiles.ITEMS = block, 4, 35
    exchange = Exchange(torch.device("cpu"))
    users, items, known = world()
    user_plan, item_plan = (Partition(rows, BUCKETS, exchange.workers) for rows in (USERS, ITEMS))
    mine = user_plan.rows_of(exchange.rank)
    own = torch.from_numpy(items[item_plan.rows_of(exchange.rank)]).float()
    pairs = ranking.Pairs(*np.nonzero(known[mine]))
    ranked = ranking.rank(torch.from_numpy(users[mine]).float(), pairs, own, item_plan, exchange, k)
    return list(zip(mine.tolist(), ranked.tolist(), strict=True))


@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.parametrize(("k", "block"), [(5, 7), (60, 100)])
def test_equal_to_a_loop(workers, k, block, monkeypatch):
    monkeypatch.setattr(ranking, "_BLOCK_ITEMS", block)
    monkeypatch.setattr(tiles, "USERS", 4)
    monkeypatch.setattr(tiles, "ITEMS", 35)
    found = dict(pair for part in run_ranks(workers, rank_mine, k, block) for pair in part)
    assert [found[u] for u in range(USERS)] == brute_force(k)
