"""Look-ups and gradients over real processes, against plain indexing into the whole table."""

import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from distrec.sharding import shared_memory
from distrec.sharding.collectives import Exchange
from distrec.sharding.partition import Partition
from distrec.sharding.shared_memory import FOLDER
from distrec.sharding.table import Table
from distrec.testing.ranks import run_ranks

ROWS, DIM = 50, 4


def wanted_by(rank: int) -> torch.Tensor:
    """Global ids a rank asks for: overlapping, uneven, none for rank 2."""
    return {0: torch.arange(0, 40, 3), 1: torch.arange(10, 50), 2: torch.arange(0)}[rank % 3]


def look_up_and_sum(buckets: int, share: bool) -> dict:
    exchange = Exchange(torch.device("cpu"), share=share)
    partition = Partition(ROWS, buckets, exchange.workers)
    whole_VD = torch.arange(ROWS * DIM, dtype=torch.float32).view(ROWS, DIM)
    own = torch.from_numpy(partition.rows_of(exchange.rank))
    table = Table("items", partition, exchange.rank, whole_VD[own])
    ids = wanted_by(exchange.rank)
    ids = ids[torch.argsort(partition.owner(ids), stable=True)]
    splits = torch.bincount(partition.owner(ids), minlength=exchange.workers).tolist()
    lookup = exchange.plan_lookup(partition.local(ids).int().numpy(), splits).result()
    rows, local = exchange.fetch(lookup, table.read(lookup.rows_R)), lookup.rows_R
    sums = exchange.sum_gradients(lookup, torch.ones(len(ids), DIM) * (exchange.rank + 1))
    gradient_VD = torch.zeros(ROWS, DIM)
    gradient_VD[own[local]] = sums
    return {
        "right_rows": torch.equal(rows, whole_VD[ids]),
        "unique": len(local.unique()) == len(local),
        "gradient": gradient_VD,
        "by": exchange.workers == 1 or exchange.by == ("shared memory" if share else "gloo"),
        "half": Exchange(torch.device("cpu"), half=True, share=share).fetch(lookup, table.read(lookup.rows_R)).tolist()
        == whole_VD[ids].bfloat16().tolist(),
        "sum": exchange.all_sum([exchange.rank + 1.0, 0.5]),
        "sent": exchange.broadcast(torch.full((2,), float(exchange.rank)), exchange.workers - 1).tolist(),
    }


@pytest.mark.parametrize(("workers", "share"), [(1, True), (2, True), (2, False), (3, True), (3, False)])
def test_rows_arrive_and_gradients_return(workers, share):
    results = run_ranks(workers, look_up_and_sum, 7, share)
    expected = torch.zeros(ROWS, DIM)
    for rank in range(workers):
        expected[wanted_by(rank)] += rank + 1
    assert all(r["right_rows"] and r["unique"] and r["half"] and r["by"] for r in results)
    assert torch.equal(sum(r["gradient"] for r in results), expected)
    assert all(r["sum"] == [workers * (workers + 1) / 2, workers / 2] for r in results)
    assert all(r["sent"] == [workers - 1.0] * 2 for r in results)


def swap_again_and_again() -> list[bool]:
    """Look-ups of random rows, more and more and then few, by both ways: many swaps, with no gradient in between."""
    shared, apart = (Exchange(torch.device("cpu"), share=share) for share in (True, False))
    draws, rank = np.random.default_rng(shared.rank), shared.rank
    same = []
    for rows in [0, 1, 7, 5000, 20_000, 3, 20_000, *[200] * 40]:
        splits = draws.multinomial(rows, [1 / shared.workers] * shared.workers)
        ids = np.concatenate([draws.permutation(20_000)[:n] for n in splits]).astype(np.int32)
        lookup = shared.plan_lookup(ids, splits.tolist()).result()
        rows_RD = torch.randn(len(lookup.rows_R), 64) + rank
        found = shared.fetch(lookup, rows_RD)
        same.append(torch.equal(found, apart.fetch(lookup, rows_RD)))
        if rows % 2:
            same.append(torch.equal(shared.sum_gradients(lookup, found), apart.sum_gradients(lookup, found)))
    return [shared.by == "shared memory", shared._buffers[0].size > 2**20, *same]


@pytest.mark.parametrize("workers", [2, 3])
def test_shared_memory_hands_over_what_gloo_does(workers):
    before = set(FOLDER.glob("distrec-*"))
    assert all(all(found) for found in run_ranks(workers, swap_again_and_again))
    assert set(FOLDER.glob("distrec-*")) <= before, "files of the boxes were left behind"


def no_room_on_rank_one(at_first: bool) -> bool:
    """A file that cannot be had, from the start or once boxes must grow: all go on without, on the same swap."""
    rank = torch.distributed.get_rank()
    exchange = None if at_first else Exchange(torch.device("cpu"))
    if rank == 1:
        shared_memory.FOLDER = Path("/nowhere/at/all")
    exchange = exchange or Exchange(torch.device("cpu"))
    ids = np.tile(np.arange(30_000, dtype=np.int32), 2)
    lookup = exchange.plan_lookup(ids, [30_000, 30_000]).result()
    found = exchange.fetch(lookup, torch.full((30_000, 20), float(rank)))
    return exchange.by == "gloo" and found[:30_000].eq(0).all().item() and found[30_000:].eq(1).all().item()


@pytest.mark.parametrize("at_first", [True, False])
def test_without_shared_memory_rows_travel_all_the_same(at_first):
    before = set(FOLDER.glob("distrec-*"))
    assert run_ranks(2, no_room_on_rank_one, at_first) == [True, True]
    assert set(FOLDER.glob("distrec-*")) <= before


def lose_rank_one() -> None:
    """Killed in the middle of a step."""
    exchange, shared_memory._LOOK_S = Exchange(torch.device("cpu")), 0.1  # before the helper ends all ranks
    lookup = exchange.plan_lookup(np.arange(4, dtype=np.int32), [2, 2]).result()
    if exchange.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    exchange.fetch(lookup, torch.ones(len(lookup.rows_R), DIM))


def test_who_waits_for_a_worker_that_was_killed_is_told():
    with pytest.raises(AssertionError, match="(?s)rank 0:.*ConnectionError: worker 1 has ended"):
        run_ranks(2, lose_rank_one)


def fail_on_rank_one() -> None:
    if Exchange(torch.device("cpu")).rank == 1:
        raise RuntimeError("rank one is out")
    torch.distributed.barrier()


def leave_without_a_word() -> None:
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
