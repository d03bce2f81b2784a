"""Look-ups and gradients over real processes, against plain indexing into the whole table."""

import pytest
import torch

from distrec.plan import Plan
from distrec.tables.exchange import Exchange
from distrec.tables.table import Table
from distrec.testing.ranks import run_ranks

ROWS, DIM = 50, 4


def wanted_by(rank: int) -> torch.Tensor:
    """Global ids a rank asks for: overlapping, uneven, none for rank 2."""
    return {0: torch.arange(0, 40, 3), 1: torch.arange(10, 50), 2: torch.arange(0)}[rank % 3]


def look_up_and_sum(buckets: int) -> dict:
    exchange = Exchange(torch.device("cpu"))
    plan = Plan(ROWS, buckets, exchange.workers)
    whole_VD = torch.arange(ROWS * DIM, dtype=torch.float32).view(ROWS, DIM)
    own = torch.from_numpy(plan.rows_of(exchange.rank))
    table = Table("items", plan, exchange.rank, whole_VD[own])
    ids = wanted_by(exchange.rank)
    ids = ids[torch.argsort(plan.owner(ids), stable=True)]
    splits = torch.bincount(plan.owner(ids), minlength=exchange.workers).tolist()
    route = exchange.ask(plan.local(ids).int().numpy(), splits).result()
    rows, local = exchange.look_up(table, route), route.rows_R
    sums = exchange.sum_gradients(route, torch.ones(len(ids), DIM) * (exchange.rank + 1))
    gradient_VD = torch.zeros(ROWS, DIM)
    gradient_VD[own[local]] = sums
    return {
        "right_rows": torch.equal(rows, whole_VD[ids]),
        "unique": len(local.unique()) == len(local),
        "gradient": gradient_VD,
        "half": Exchange(torch.device("cpu"), half=True).look_up(table, route).tolist()
        == whole_VD[ids].bfloat16().tolist(),
        "sum": exchange.all_sum([exchange.rank + 1.0, 0.5]),
        "sent": exchange.broadcast(torch.full((2,), float(exchange.rank)), exchange.workers - 1).tolist(),
    }


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_rows_arrive_and_gradients_return(workers):
    results = run_ranks(workers, look_up_and_sum, 7)
    expected = torch.zeros(ROWS, DIM)
    for rank in range(workers):
        expected[wanted_by(rank)] += rank + 1
    assert all(r["right_rows"] and r["unique"] and r["half"] for r in results)
    assert torch.equal(sum(r["gradient"] for r in results), expected)
    assert all(r["sum"] == [workers * (workers + 1) / 2, workers / 2] for r in results)
    assert all(r["sent"] == [workers - 1.0] * 2 for r in results)


def fail_on_rank_one() -> None:
    if Exchange(torch.device("cpu")).rank == 1:
        raise RuntimeError("rank one is out")
    torch.distributed.barrier()


def leave_without_a_word() -> None:
    import os

    os._exit(3 if Exchange(torch.device("cpu")).rank == 0 else 0)


def sleep_for_ever() -> None:
    import time

    time.sleep(1000)


def test_the_helper_sees_failures():
    with pytest.raises(AssertionError, match="(?s)rank 1:.*rank one is out"):
        run_ranks(2, fail_on_rank_one)
    with pytest.raises(AssertionError, match="rank 0:\nended without a report"):
        run_ranks(2, leave_without_a_word)
    with pytest.raises(AssertionError, match="too slow"):
        run_ranks(2, sleep_for_ever, timeout_s=6)
