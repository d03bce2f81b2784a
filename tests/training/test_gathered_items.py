"""Each worker has the items of all; their gradients come back to the owners, summed, with which items were used."""

import pytest
import torch

from distrec.sharding.collectives import Exchange
from distrec.sharding.partition import Partition
from distrec.testing.ranks import run_ranks
from distrec.training.gathered_items import GatheredItems

WIDTHS = {"items": 3, "margins": 1}


def values(items, seed):
    """Return the rows of all items by table."""
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(items, width, generator=generator) for name, width in WIDTHS.items()}


def gather_and_return(items, buckets):
    """Return (gathered rows, own ids, sums of gradients, which items are used) at this rank, of two rounds."""
    exchange, rounds = Exchange(torch.device("cpu")), []
    partition = Partition(items, buckets, exchange.workers)
    own = torch.from_numpy(partition.rows_of(exchange.rank))
    gathered = GatheredItems(exchange, partition, WIDTHS)
    for seed in (0, 100):  # buffers are used again
        gathered.put({name: rows[own] for name, rows in values(items, seed).items()})
        gathered.gather()
        used_V = torch.arange(items) % (exchange.rank + 2) == 1
        gathered.put_gradients(values(items, seed + 1 + exchange.rank), used_V)
        gathered.return_gradients()
        rounds.append((gathered.rows(), own, *gathered.sums()))
    return rounds


@pytest.mark.parametrize("workers", [2, 3])
@pytest.mark.parametrize(("items", "buckets"), [(29, 7), (3, 3)])
def test_rows_and_sums(workers, items, buckets):
    for results in run_ranks(workers, gather_and_return, items, buckets):
        for seed, (rows, own, sums, used) in zip((0, 100), results, strict=True):
            parts = [values(items, seed + 1 + rank) for rank in range(workers)]
            uses = [torch.arange(items) % (rank + 2) == 1 for rank in range(workers)]
            assert torch.equal(used, torch.stack(uses).any(0)[own])
            for name, expected in values(items, seed).items():
                assert torch.equal(rows[name], expected)
                torch.testing.assert_close(sums[name], sum(part[name] for part in parts)[own])
