"""Look-ups and gradients between processes, compared with indexing into the whole table."""

import os
import signal
from pathlib import Path
from unittest import mock

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


def requested_ids(rank: int) -> torch.Tensor:
    """Return the ids that a rank requests: overlapping, of different lengths, none for rank 2."""
    return {0: torch.arange(0, 40, 3), 1: torch.arange(10, 50), 2: torch.arange(0)}[rank % 3]


def look_up_and_sum(buckets: int, share: bool) -> dict:
    exchange = Exchange(torch.device("cpu"), share_memory=share)
    partition = Partition(ROWS, buckets, exchange.workers)
    whole_VD = torch.arange(ROWS * DIM, dtype=torch.float32).view(ROWS, DIM)
    own = torch.from_numpy(partition.rows_of(exchange.rank))
    table = Table("items", partition, exchange.rank, whole_VD[own])
    ids = requested_ids(exchange.rank)
    ids = ids[torch.argsort(partition.owner(ids), stable=True)]
    splits = torch.bincount(partition.owner(ids), minlength=exchange.workers).tolist()
    lookup = exchange.plan_lookup(partition.local(ids).int().numpy(), splits).result()
    rows, local = exchange.fetch(lookup, table.read(lookup.rows_R)), lookup.rows_R
    sums = exchange.sum_gradients(lookup, torch.ones(len(ids), DIM) * (exchange.rank + 1))
    rounding = Exchange(torch.device("cpu"), send_bfloat16=True, share_memory=share)
    rounded = rounding.fetch(lookup, table.read(lookup.rows_R))
    gradient_VD = torch.zeros(ROWS, DIM)
    gradient_VD[own[local]] = sums
    parts = [torch.arange(10 * rank, 10 * rank + 2 * rank) for rank in range(exchange.workers)]  # rank 0's is empty
    gathered, own_slice = exchange.gather(parts[exchange.rank])
    part_sums = exchange.sum_parts(gathered * (exchange.rank + 1), exchange.part_lengths(2 * exchange.rank))
    return {
        "rows": torch.equal(rows, whole_VD[ids]),
        "unique": len(local.unique()) == len(local),
        "gradient": gradient_VD,
        "transport": exchange.workers == 1 or exchange.transport == ("shared memory" if share else "gloo"),
        "bfloat16": torch.equal(rounded, whole_VD[ids].bfloat16().float()),
        "gather": torch.equal(gathered, torch.cat(parts)) and torch.equal(gathered[own_slice], parts[exchange.rank]),
        "parts": torch.equal(part_sums, parts[exchange.rank] * sum(range(exchange.workers + 1))),
        "sum": exchange.all_sum([exchange.rank + 1.0, 0.5]),
        "broadcast": exchange.broadcast(torch.full((2,), float(exchange.rank)), exchange.workers - 1).tolist(),
    }


@pytest.mark.parametrize(("workers", "share"), [(1, True), (2, True), (2, False), (3, True), (3, False)])
def test_rows_are_fetched_and_gradients_returned(workers, share):
    results = run_ranks(workers, look_up_and_sum, 7, share)
    expected = torch.zeros(ROWS, DIM)
    for rank in range(workers):
        expected[requested_ids(rank)] += rank + 1
    named = ("rows", "unique", "bfloat16", "transport", "gather", "parts")
    assert all(r[name] for r in results for name in named), results
    assert torch.equal(sum(r["gradient"] for r in results), expected)
    assert all(r["sum"] == [workers * (workers + 1) / 2, workers / 2] for r in results)
    assert all(r["broadcast"] == [workers - 1.0] * 2 for r in results)


def exchange_repeatedly() -> list[bool]:
    """Look up random rows by both transports, first more and more, then few: many exchanges, few with gradients."""
    shared, gloo = (Exchange(torch.device("cpu"), share_memory=share) for share in (True, False))
    draws, rank = np.random.default_rng(shared.rank), shared.rank
    same, kept = [], []
    for rows in [0, 1, 7, 5000, 20_000, 3, 20_000, *[200] * 40]:
        splits = draws.multinomial(rows, [1 / shared.workers] * shared.workers)
        ids = np.concatenate([draws.permutation(20_000)[:n] for n in splits]).astype(np.int32)
        lookup = shared.plan_lookup(ids, splits.tolist()).result()
        rows_RD = torch.randn(len(lookup.rows_R), 64) + rank
        fetched = shared.fetch(lookup, rows_RD)
        kept.append((fetched, gloo.fetch(lookup, rows_RD)))
        if rows % 2:
            same.append(torch.equal(shared.sum_gradients(lookup, fetched), gloo.sum_gradients(lookup, fetched)))
    same += [torch.equal(*pair) for pair in kept]  # no exchange overwrites the result of another
    return [shared.transport == "shared memory", shared._buffer_sets[0].size > 2**20, *same]


@pytest.mark.parametrize("workers", [2, 3])
def test_shared_memory_equals_gloo(workers):
    before = set(FOLDER.glob("distrec-*"))
    assert all(all(same) for same in run_ranks(workers, exchange_repeatedly))
    assert set(FOLDER.glob("distrec-*")) <= before, "files of shared buffers were left behind"


def no_space_on_rank_one(from_start: bool) -> bool:
    """Fail to create a buffer on rank 1, from the start or when it must grow: all fall back at the same exchange."""
    rank = torch.distributed.get_rank()
    exchange = None if from_start else Exchange(torch.device("cpu"))
    with mock.patch.object(shared_memory, "FOLDER", Path("/nowhere/at/all") if rank == 1 else FOLDER):
        exchange = exchange or Exchange(torch.device("cpu"))
        lookup = exchange.plan_lookup(np.tile(np.arange(30_000, dtype=np.int32), 2), [30_000, 30_000]).result()
        rows = exchange.fetch(lookup, torch.full((30_000, 20), float(rank)))
    return exchange.transport == "gloo" and rows[:30_000].eq(0).all().item() and rows[30_000:].eq(1).all().item()


@pytest.mark.parametrize("from_start", [True, False])
def test_fall_back_to_gloo_without_shared_memory(from_start):
    before = set(FOLDER.glob("distrec-*"))
    assert run_ranks(2, no_space_on_rank_one, from_start) == [True, True]
    assert set(FOLDER.glob("distrec-*")) <= before


def lose_rank_one() -> None:
    """Kill rank 1 in the middle of a step."""
    exchange, shared_memory._LIVENESS_S = Exchange(torch.device("cpu")), 0.1  # before `run_ranks` ends all ranks
    lookup = exchange.plan_lookup(np.arange(4, dtype=np.int32), [2, 2]).result()
    if exchange.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    exchange.fetch(lookup, torch.ones(len(lookup.rows_R), DIM))


def test_a_killed_worker_is_an_error_at_the_others():
    with pytest.raises(AssertionError, match="(?s)rank 0:.*ConnectionError: worker 1 has ended"):
        run_ranks(2, lose_rank_one)


def fail_on_rank_one() -> None:
    if Exchange(torch.device("cpu")).rank == 1:
        raise RuntimeError("rank one is out")
    torch.distributed.barrier()


def exit_without_report() -> None:
    os._exit(3 if Exchange(torch.device("cpu")).rank == 0 else 0)


def sleep_forever() -> None:
    import time

    time.sleep(1000)


def test_run_ranks_reports_failures():
    with pytest.raises(AssertionError, match="(?s)rank 1:.*rank one is out"):
        run_ranks(2, fail_on_rank_one)
    with pytest.raises(AssertionError, match="rank 0:\nended without a report"):
        run_ranks(2, exit_without_report)
    with pytest.raises(AssertionError, match="too slow"):
        run_ranks(2, sleep_forever, timeout_s=6)
