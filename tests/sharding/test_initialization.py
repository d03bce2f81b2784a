"""Initial rows do not depend on the number of workers, and have the distribution that they are named after."""

import hashlib
import math
import zlib

import numpy as np
import pytest
import torch

from distrec.core.randomness import Purpose, generator
from distrec.sharding.initialization import Init, initializers
from distrec.sharding.partition import Partition

NORMAL = initializers["normal"](std=0.5)


def degrees(rows):
    """Return degrees of some rows of a table, from 0 on."""
    return rows * rows % 91


def whole(init: Init, rows, buckets, workers, seed=0, table="items", width=8):
    """Return the rows of a table, merged from its shards."""
    out = torch.full((rows, width), torch.nan)
    for worker in range(workers):
        partition = Partition(rows, buckets, workers)
        owned = partition.rows_of(worker)
        shard = init.rows(seed, table, partition, worker, width, degrees(owned) if init.reads_degrees else None)
        assert shard.dtype == torch.float32
        out[torch.from_numpy(owned)] = shard
    return out


@pytest.mark.parametrize("name", initializers)
def test_equal_bits_for_any_number_of_workers(name):
    for rows in (0, 1, 7, 100):
        one = whole(initializers[name](), rows, 8, 1)
        for workers in (2, 3, 8):
            assert torch.equal(whole(initializers[name](), rows, 8, workers), one)


def test_normal_rows_by_numpy():
    rows = whole(NORMAL, 100, 8, 3, seed=5, table="users")
    for bucket in range(8):
        draws = generator(5, Purpose.INIT, zlib.crc32(b"users"), bucket)
        expected = draws.standard_normal((len(range(bucket, 100, 8)), 8), np.float32) * np.float32(0.5)
        np.testing.assert_array_equal(rows[bucket::8], expected)


def test_the_bits_of_normal_rows_stay():
    digest = hashlib.sha256(whole(NORMAL, 100, 8, 1).numpy().tobytes()).hexdigest()
    assert digest == "0b0690f87fac7c4ba58d707633ec4c8165c52504fc144143bd7356c8a73ab51d"


def test_rows_depend_on_seed_and_table_and_are_normal():
    rows = whole(NORMAL, 5000, 64, 1)
    assert not torch.equal(rows, whole(NORMAL, 5000, 64, 1, seed=1))
    assert not torch.equal(rows, whole(NORMAL, 5000, 64, 1, table="users"))
    assert len(np.unique(rows.numpy())) > 39_000  # buckets have distinct streams
    assert abs(rows.mean()) < 0.01 and abs(rows.std() - 0.5) < 0.01
    assert abs((rows.abs() < 0.5).float().mean() - 0.6827) < 0.01


def test_xavier_has_the_moments_of_torch_over_the_whole_table():
    """`torch.nn.init` on the whole table is the oracle of the distributions; a shard does not know its size alone."""
    rows, width = 5000, 24
    for name, oracle in (
        ("xavier_uniform", torch.nn.init.xavier_uniform_),
        ("xavier_normal", torch.nn.init.xavier_normal_),
    ):
        ours, theirs = whole(initializers[name](), rows, 64, 3, width=width), oracle(torch.empty(rows, width))
        assert ours.std() == pytest.approx(math.sqrt(2 / (rows + width)), rel=0.01)
        for power in (1, 2, 4):
            expected = theirs.abs().pow(power).mean().item()
            assert ours.abs().pow(power).mean().item() == pytest.approx(expected, rel=0.02), (name, power)
    bound = math.sqrt(6 / (rows + width))
    uniform = whole(initializers["xavier_uniform"](), rows, 64, 3, width=width)
    assert -bound <= uniform.min() < -0.999 * bound and 0.999 * bound < uniform.max() < bound


@pytest.mark.parametrize("base", ["xavier_uniform", "normal"])
@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_prism_norms_and_directions(base, alpha):
    """Norms are alpha ln(d + 2) + 1 - alpha, ln 2 at d = 0 and alpha = 1; directions are those of the base."""
    rows, of_base = (
        whole(init, 100, 8, 3).double()
        for init in (initializers["prism"](alpha=alpha, base=base), initializers[base]())
    )
    d = torch.from_numpy(degrees(np.arange(100))).double()
    torch.testing.assert_close(rows.norm(dim=1), alpha * torch.log(d + 2) + 1 - alpha, rtol=1e-6, atol=0)
    cosine = (rows * of_base).sum(1) / rows.norm(dim=1) / of_base.norm(dim=1)
    assert cosine.min() > 1 - 1e-6
    if alpha == 1:
        assert d[0] == 0 and abs(rows[0].norm() - 0.693147) < 1e-6


class MostlyZero(Init):
    """Rows of which nine in ten are zero."""

    def draw(self, draws, shape, table_rows):
        return ((draws.random((shape[0], 1)) < 0.1) * draws.standard_normal(shape)).astype(np.float32)


def test_prism_draws_rows_of_zeros_again(monkeypatch):
    monkeypatch.setitem(initializers, "mostly_zero", MostlyZero)
    init = initializers["prism"](alpha=0, base="mostly_zero")
    rows = whole(init, 100, 8, 1)
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(100))
    assert len({tuple(row) for row in rows.tolist()}) == 100 and torch.equal(rows, whole(init, 100, 8, 3))


def test_the_base_of_prism_is_another_initialisation():
    with pytest.raises(ValueError, match="'prism' is not a base; known: normal, xavier_normal, xavier_unif"):
        initializers["prism"](base="prism")
