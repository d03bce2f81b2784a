"""Rows of bfloat16 with float32 state: unbiased, and nothing is lost to rounding."""

import pytest
import torch

from distrec.kernels.bfloat16 import round_
from distrec.optim.dense_reference import DenseReference
from distrec.optim.sparse import SparseOptimizer
from distrec.sharding.partition import Partition
from distrec.sharding.table import Table
from tests.optim.cases import COUPLINGS, KERNELS, config, each_pair, start

WIDE = 4096  # columns with equal values and gradients: their mean shows the bias of the rounding


def test_rounding_is_to_a_neighbour_and_unbiased():
    for value in (1.001, -3.14159, 1e-20, 6e4, 1.0 + 2**-9):
        rows_UD = torch.full((64, WIDE), value)
        rounded_UD = round_(rows_UD.clone(), torch.arange(64), step=3).float()
        down, up = sorted({*rounded_UD.unique().tolist()})
        assert down < rows_UD[0, 0].item() < up
        assert up - down <= 2**-7 * abs(value)
        share = (rounded_UD == up).double().mean().item()
        assert share == pytest.approx((rows_UD[0, 0].item() - down) / (up - down), abs=5 * 0.5 / rows_UD.numel() ** 0.5)


def test_values_of_bfloat16_do_not_change():
    kept = torch.tensor([[0.0, -0.0, 1.0, -2.5, float("inf"), -float("inf"), 2.0**-130]])
    for step in range(20):
        assert torch.equal(round_(kept.clone(), torch.tensor([step]), step).float(), kept)
    assert round_(torch.tensor([[float("nan")]]), torch.tensor([0]), 3).isnan().all()


@pytest.mark.parametrize("axis", ["row", "column", "step"])
def test_rounding_is_independent_along_each_axis(axis):
    """Half of the values are rounded up, and neighbours agree half of the time."""
    n = 40_000
    rows, columns, step = {"row": (n, 1, 0), "column": (1, n, 0), "step": (n, 1, torch.arange(n)[:, None])}[axis]
    ids_U = torch.zeros(n, dtype=torch.int64) if axis == "step" else torch.arange(rows)
    up = round_(torch.full((rows, columns), 1 + 2**-8), ids_U, step).float().ravel() > 1
    agree = (up[1:] == up[:-1]).double().mean().item()
    assert up.double().mean().item() == pytest.approx(0.5, abs=5 * 0.5 / n**0.5)
    assert agree == pytest.approx(0.5, abs=5 * 0.5 / n**0.5)


@each_pair(kernels=KERNELS)
def test_the_mean_of_many_columns_is_the_reference(rule, scope, coupling, kernels):
    rows_VD = torch.linspace(0.5, 1.5, 4)[:, None].repeat(1, WIDE).bfloat16()
    chosen = config(rule, scope, coupling, lr=0.01, kernels=kernels)
    table, optimizer = start(chosen, rows_VD)
    reference = DenseReference(rows_VD[:, :1].double(), chosen, 100)
    for t in range(25):
        rows_U = torch.tensor([[0, 2], [1], [], [2, 1, 0]][t % 4], dtype=torch.int64)
        grad_U1 = 0.1 * torch.cos(rows_U + 1.0 + t)[:, None]
        assert table.read(rows_U).dtype == torch.float32
        optimizer.step(rows_U, grad_U1.repeat(1, WIDE))
        reference.step(rows_U, grad_U1.double())
    found_VD = table.flush()
    assert found_VD.dtype == torch.bfloat16
    assert {slot.dtype for slot in optimizer._rule.slots.values()} <= {torch.float32}
    # The error of a rounding is at most 2^-8 of the row; 25 add up in quadrature, and the mean divides by sqrt(WIDE).
    bound = 5 * 2**-8 * 25**0.5 / WIDE**0.5
    torch.testing.assert_close(found_VD.double().mean(1), reference.rows_VD[:, 0], rtol=2 * bound, atol=2 * bound)


def test_updates_far_below_the_resolution_are_not_lost():
    table, optimizer = start(config("sgd", lr=1e-4), torch.ones(1, WIDE, dtype=torch.bfloat16))
    for _ in range(500):
        optimizer.step(torch.tensor([0]), torch.ones(1, WIDE))
    assert table.read_all().mean().item() == pytest.approx(0.95, abs=0.002)


def test_decay_far_below_the_resolution_is_not_lost():
    """A sweep rounds 500 times; a read at the end rounds once."""
    for idle in ("lazy", "sweep"):
        table, optimizer = start(config("sgd", "full", shrink=1e-4, idle=idle), torch.ones(1, WIDE).bfloat16())
        for _ in range(500):
            optimizer.step(torch.zeros(0, dtype=torch.int64), torch.zeros(0, WIDE))
        assert table.read_all().mean().item() == pytest.approx((1 - 1e-4) ** 500, abs=0.002)


@each_pair(COUPLINGS[::-1])
def test_the_worker_that_holds_a_row_does_not_matter(rule, scope, coupling):
    """Couplings in reverse: those that the test above leaves out."""
    found = []
    rows_VD = torch.linspace(-1, 1, 60).view(6, 10).bfloat16()
    for workers in (1, 2, 3):
        partition = Partition(6, 6, workers)
        whole_VD = torch.empty_like(rows_VD)
        for worker in range(workers):
            mine = torch.from_numpy(partition.rows_of(worker))
            table = Table("items", partition, worker, rows_VD[mine])
            optimizer = SparseOptimizer(table, config(rule, scope, coupling, kernels="numba"), 10)
            for t in range(10):
                rows_U = torch.tensor([t % 6, (t + 2) % 6])
                owned = partition.owner(rows_U) == worker
                optimizer.step(partition.local(rows_U[owned]), torch.full((int(owned.sum()), 10), 0.1 * t))
            whole_VD[mine] = table.flush()
        found.append(whole_VD)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


def test_gradients_are_float32():
    _, optimizer = start(config(), torch.zeros(3, 5, dtype=torch.bfloat16))
    with pytest.raises(AssertionError):
        optimizer.step(torch.tensor([0]), torch.zeros(1, 5, dtype=torch.bfloat16))
