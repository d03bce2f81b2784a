"""Look-ups and gradients between processes, compared with indexing into the whole table."""

import os
import signal
import time

import numpy as np
import pytest
import torch

from distrec.sharding.collectives import Exchange
from distrec.sharding.partition import Partition
from distrec.sharding.table import Table
from distrec.testing.ranks import run_ranks

ROWS, DIM = 50, 4
CPU = torch.device("cpu")


def requested_ids(rank: int) -> torch.Tensor:
    """Return the ids that a rank requests: overlapping, of different lengths, none for rank 2."""
    return {0: torch.arange(0, 40, 3), 1: torch.arange(10, 50), 2: torch.arange(0)}[rank % 3]


def look_up_and_sum(buckets: int) -> dict:
    exchange = Exchange(CPU)
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
    rounded = Exchange(CPU, send_bfloat16=True).fetch(lookup, table.read(lookup.rows_R))
    gradient_VD = torch.zeros(ROWS, DIM)
    gradient_VD[own[local]] = sums
    parts = [torch.arange(10 * rank, 10 * rank + 2 * rank) for rank in range(exchange.workers)]  # rank 0's is empty
    gathered, own_slice = exchange.gather(parts[exchange.rank])
    return {
        "rows": torch.equal(rows, whole_VD[ids]),
        "unique": len(local.unique()) == len(local),
        "gradient": gradient_VD,
        "bfloat16": torch.equal(rounded, whole_VD[ids].bfloat16().float()),
        "gather": torch.equal(gathered, torch.cat(parts)) and torch.equal(gathered[own_slice], parts[exchange.rank]),
        "sum": exchange.all_sum([exchange.rank + 1.0, 0.5]),
        "broadcast": exchange.broadcast(torch.full((2,), float(exchange.rank)), exchange.workers - 1).tolist(),
    }


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_rows_are_fetched_and_gradients_returned(workers):
    results = run_ranks(workers, look_up_and_sum, 7)
    expected = torch.zeros(ROWS, DIM)
    for rank in range(workers):
        expected[requested_ids(rank)] += rank + 1
    assert all(r[name] for r in results for name in ("rows", "unique", "bfloat16", "gather")), results
    assert torch.equal(sum(r["gradient"] for r in results), expected)
    assert all(r["sum"] == [workers * (workers + 1) / 2, workers / 2] for r in results)
    assert all(r["broadcast"] == [workers - 1.0] * 2 for r in results)


def exchange_repeatedly() -> list[bool]:
    """Look up random rows and return values for them; compare only after all exchanges, as results own their memory.

    All ranks draw the same requests and tables, (W, V, 8): rank r has the table r of the rows that it owns.
    """
    exchange, draws = Exchange(CPU), np.random.default_rng(0)
    workers, rank, rows, kept = exchange.workers, exchange.rank, 20_000, []
    for requested in (0, 1, 7, 5000, rows, 3, rows, 200):
        counts_WW = draws.multinomial(requested, [1 / workers] * workers, size=workers)
        ids_WW = [[draws.permutation(rows)[:count] for count in counts_W] for counts_W in counts_WW]
        whole_WVD = torch.from_numpy(draws.standard_normal((workers, rows, 8), np.float32))
        own_U = np.concatenate(ids_WW[rank]).astype(np.int32)
        lookup = exchange.plan_lookup(own_U, counts_WW[rank].tolist()).result()
        fetched_UD = exchange.fetch(lookup, whole_WVD[rank, lookup.rows_R])
        kept.append((fetched_UD, torch.cat([whole_WVD[owner, ids] for owner, ids in enumerate(ids_WW[rank])])))
        sums_VD = torch.zeros(rows, 8)
        for ids_W in ids_WW:
            sums_VD[ids_W[rank]] += whole_WVD[rank, ids_W[rank]]  # in the order of the ranks
        kept.append((exchange.sum_gradients(lookup, fetched_UD), sums_VD[lookup.rows_R]))
    return [torch.equal(*pair) for pair in kept]


@pytest.mark.parametrize("workers", [2, 3])
def test_exchanges_of_any_size_equal_indexing_bit_for_bit(workers):
    for equal in run_ranks(workers, exchange_repeatedly):
        assert all(equal), equal


def lose_rank_one() -> None:
    """Kill rank 1 in the middle of a step: at rank 0 both the exchange of rows and the next look-up must fail."""
    exchange, ids = Exchange(CPU), np.arange(4, dtype=np.int32)
    lookup = exchange.plan_lookup(ids, [2, 2]).result()
    if exchange.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    with pytest.raises(RuntimeError, match="(?i)connection|peer"):
        exchange.fetch(lookup, torch.ones(len(lookup.rows_R), DIM))
    exchange.plan_lookup(ids, [2, 2]).result()


def test_a_killed_worker_is_an_error_at_the_others():
    """`run_ranks` gives rank 0 some seconds; gloo's own time-out is half an hour."""
    with pytest.raises(AssertionError, match="(?s)rank 0:.*plan_lookup.*RuntimeError:.*rank 1:.*exit code -9"):
        run_ranks(2, lose_rank_one, fresh=True)


def fail_in_three_ways() -> None:
    rank = Exchange(CPU).rank
    if rank == 0:
        os._exit(3)
    if rank == 1:
        raise RuntimeError("rank one is out")
    time.sleep(1000)


@pytest.mark.long
def test_run_ranks_reports_failures():
    expected = "(?s)rank 0:\nended without a report, exit code 3\nrank 1:\n.*rank one is out.*rank 2:\ntoo slow"
    with pytest.raises(AssertionError, match=expected):
        run_ranks(3, fail_in_three_ways, timeout_s=15, fresh=True)
