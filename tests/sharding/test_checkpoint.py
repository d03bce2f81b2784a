"""Shards written by any number of workers are read back by any other number, bit for bit."""

import pytest
import torch

from distrec.core.errors import UserError
from distrec.sharding.checkpoint import load_shard, save_shard
from distrec.sharding.partition import Partition

SHAPES = {"users": (23, 8), "items": (31, 8), "item margins": (31, 8)}


def partitions(workers):
    return {name: Partition(*shape, workers) for name, shape in SHAPES.items()}


def tables(workers, worker):
    """Return rows with known contents: the row's id times 10 plus the column."""
    ids = {name: torch.from_numpy(partition.rows_of(worker)) for name, partition in partitions(workers).items()}
    return {n: {"rows": i[:, None] * 10.0 + torch.arange(3), "optim.count": i.int()} for n, i in ids.items()}


@pytest.mark.parametrize("saved", [1, 2, 3, 8])
@pytest.mark.parametrize("loaded", [1, 2, 5])
def test_resharding(tmp_path, saved, loaded):
    for worker in range(saved):
        shared = {"dense": {"weight": torch.full((2, 3), float(worker))}, "steps": 7}  # worker 0's is saved
        save_shard(tmp_path, worker, partitions(saved), tables(saved, worker), {"epoch": 3}, shared)
    for worker in range(loaded):
        rows, meta, shared = load_shard(tmp_path, worker, partitions(loaded))
        assert meta == {"epoch": 3} and rows.keys() == SHAPES.keys()
        assert shared["steps"] == 7 and torch.equal(shared["dense"]["weight"], torch.zeros(2, 3))
        for name, expected in tables(loaded, worker).items():
            assert all(torch.equal(rows[name][key], expected[key]) for key in expected)


def test_messages_for_invalid_checkpoints(tmp_path):
    with pytest.raises(UserError, match="no checkpoint in"):
        load_shard(tmp_path, 0, partitions(1))
    save_shard(tmp_path, 0, partitions(2), tables(2, 0), {}, {})
    with pytest.raises(UserError, match="contains 1 of 2 shards"):
        load_shard(tmp_path, 0, partitions(1))
    save_shard(tmp_path, 1, partitions(2), tables(2, 1), {}, {})
    with pytest.raises(UserError, match="not for this data set"):
        load_shard(tmp_path, 0, partitions(1) | {"users": Partition(24, 8, 1)})
    others = {"users": Partition(23, 8, 2), "layers": Partition(31, 8, 2)}
    with pytest.raises(UserError, match=r"lacks tables \['layers'\] and has in addition \['item margins', 'items'\]$"):
        load_shard(tmp_path, 0, others)
    file = tmp_path / "shard-00000-of-00002.pt"
    torch.save(torch.load(file) | {"format": 1}, file)
    with pytest.raises(UserError, match="has format 1; this version reads 2$"):
        load_shard(tmp_path, 0, partitions(2))
