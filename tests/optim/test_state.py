"""A run that is saved and resumed, on any number of workers, equals the uninterrupted run."""

import numpy as np
import pytest
import torch

from distrec.core.errors import UserError
from distrec.optim.config import OptimConfig, ScheduleConfig
from distrec.optim.sparse import SparseOptimizer
from distrec.sharding.partition import Partition
from distrec.sharding.table import Table
from tests.optim.cases import DIM, DTYPES, KERNELS, batches, config, each_mode, start

SCHEDULE = ScheduleConfig(name="linear", warmup_steps=4)
STEPS, CUT, V = 30, 13, 9


@each_mode(dtype=DTYPES, kernels=KERNELS)
def test_resumed_equals_uninterrupted_bit_for_bit(rule, scope, coupling, dtype, kernels):
    """Both flush at the checkpoint, as saving flushes the uninterrupted run, too."""
    chosen = config(rule, scope, coupling, schedule=SCHEDULE, kernels=kernels)
    steps = batches(5, STEPS, V, dtype)
    table, optimizer = start(chosen, torch.randn(V, DIM, dtype=dtype), STEPS)
    for batch in steps[:CUT]:
        optimizer.step(*batch)
    saved_VD = table.flush().clone()
    saved = {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in optimizer.state().items()}

    other_table, other = start(chosen, torch.randn(V, DIM, dtype=dtype), STEPS)
    for batch in steps[:3]:  # loading must discard the past of the optimizer
        other.step(*batch)
    other_table.stored_VD.copy_(saved_VD)
    other.load(saved)
    for batch in steps[CUT:]:
        optimizer.step(*batch)
        other.step(*batch)
    assert torch.equal(other_table.flush(), table.flush())
    assert optimizer.state().keys() == other.state().keys()
    for name, value in optimizer.state().items():
        assert torch.equal(torch.as_tensor(other.state()[name]), torch.as_tensor(value)), name


def shards(chosen: OptimConfig, rows_VD: torch.Tensor, workers: int) -> list[tuple[Table, SparseOptimizer]]:
    """Return the shards of the table over some workers, each with its optimizer."""
    partition = Partition(V, 4, workers)
    tables = [Table("items", partition, w, rows_VD[partition.rows_of(w)].clone()) for w in range(workers)]
    return [(table, SparseOptimizer(table, chosen, STEPS)) for table in tables]


def step_all(parts: list[tuple[Table, SparseOptimizer]], rows_U: torch.Tensor, grad_UD: torch.Tensor) -> None:
    """Take one step on all workers, each with the rows that it owns."""
    for table, optimizer in parts:
        mine = table.partition.owner(rows_U) == table.worker
        optimizer.step(table.partition.local(rows_U[mine]), grad_UD[mine])


def gather(parts: list[tuple[Table, SparseOptimizer]]) -> dict[str, torch.Tensor]:
    """Return rows and per-row state of the whole table, in the order of its rows."""
    order = torch.from_numpy(np.concatenate([table.partition.rows_of(table.worker) for table, _ in parts]))
    local = [{"rows": table.flush(), **optimizer.state()} for table, optimizer in parts]
    names = [name for name in local[0] if name != "t"]
    return {name: torch.cat([part[name] for part in local])[order.argsort()] for name in names}


@each_mode(workers=[(1, 3), (3, 1), (2, 4)])
def test_resharding_by_row_changes_nothing(rule, scope, coupling, workers):
    """Up to a few roundings: how torch vectorises, and so rounds, may depend on the number of rows in a batch."""
    before, after = workers
    chosen = config(rule, scope, coupling, schedule=SCHEDULE)
    rows_VD = torch.randn(V, DIM, dtype=torch.float64)
    steps = batches(6, STEPS, V)
    one, old = shards(chosen, rows_VD, 1), shards(chosen, rows_VD, before)
    for batch in steps[:CUT]:
        step_all(one, *batch)
        step_all(old, *batch)
    whole = gather(old)
    new = shards(chosen, whole.pop("rows"), after)
    for table, optimizer in new:
        mine = table.partition.rows_of(table.worker)
        optimizer.load({"t": CUT, **{name: value[mine] for name, value in whole.items()}})
    for batch in steps[CUT:]:
        step_all(one, *batch)
        step_all(new, *batch)
    expected, found = gather(one), gather(new)
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-13, atol=1e-14)


def test_the_state_is_by_row_and_has_no_pending_decay():
    table, optimizer = start(config("lazy_adam", "full"), torch.randn(V, DIM))
    optimizer.step(torch.tensor([0]), torch.ones(1, DIM))
    with pytest.raises(AssertionError, match="flush table items"):
        optimizer.state()
    table.flush()
    state = optimizer.state()
    assert {name: getattr(value, "shape", value) for name, value in state.items()} == {
        "t": 1,
        "moment1": (V, DIM),
        "moment2": (V, DIM),
    }


def test_a_state_of_another_rule_is_refused():
    _, adam = start(config("lazy_adam"), torch.zeros(V, DIM))
    _, sgd = start(config("sgd"), torch.zeros(V, DIM))
    with pytest.raises(UserError, match="holds moment1, moment2, t; rule sgd of table items needs t"):
        sgd.load(adam.state())
    with pytest.raises(UserError, match="resume with the rule of the saved run"):
        adam.load(sgd.state())
