"""Sparse-aware optimizer against the dense reference."""

import pytest
import torch
from hypothesis import given, settings

from distrec.core.errors import UserError
from distrec.optim.config import DecayConfig, OptimConfig, ScheduleConfig
from distrec.optim.dense_reference import DenseReference
from distrec.optim.replay import Replay
from distrec.optim.rules import RULES
from distrec.optim.sparse import SparseOptimizer
from distrec.sharding.partition import Partition
from distrec.sharding.table import Table
from tests.optim.cases import (
    COUPLINGS,
    DIM,
    DTYPES,
    KERNELS,
    SHRINKS,
    Run,
    batches,
    config,
    each_mode,
    each_pair,
    pairwise,
    runs,
    start,
)

# (device of the shard, kernels)
WAYS = [
    *(("cpu", name) for name in KERNELS),
    *([("cuda", "auto"), ("cuda", "reference")] if torch.cuda.is_available() else []),
]
EMPTY = torch.zeros(0, dtype=torch.int64)


def worst(run: Run, dtype: torch.dtype) -> float:
    """Return the largest deviation from a float64 reference at any read, relative to the row at its largest.

    A deviation relative to the present row has no bound: a gradient may cancel a row almost exactly.
    """
    generator = torch.Generator().manual_seed(run.seed)
    rows_VD = torch.randn(run.size, DIM, generator=generator)
    table, optimizer = start(run.config, rows_VD.to(dtype), run.total_steps)
    reference = DenseReference(rows_VD.double(), run.config, run.total_steps)
    scale_V = reference.rows_VD.abs().amax(1)
    found = 0.0
    for kind, rows in [*run.actions, ("flush", [])]:
        rows_U = torch.tensor(rows, dtype=torch.int64)
        if kind == "step":
            grad_UD = run.grad_scale * torch.randn(len(rows), DIM, generator=generator)
            optimizer.step(rows_U, grad_UD.to(dtype))
            reference.step(rows_U, grad_UD.double())
            scale_V = torch.maximum(scale_V, reference.rows_VD.abs().amax(1))
            continue
        if kind == "pause":
            for _ in rows:
                optimizer.step(EMPTY, torch.zeros(0, DIM, dtype=dtype))
                reference.step(EMPTY, torch.zeros(0, DIM, dtype=torch.float64))
            continue
        if kind == "flush":
            rows_U = torch.arange(run.size)
        shown_UD = table.flush() if kind == "flush" else table.read(rows_U)
        assert shown_UD.dtype == dtype
        error_UD = (shown_UD.double() - reference.rows_VD[rows_U]).abs() / scale_V[rows_U, None]
        found = max(found, error_UD.max().item() if len(rows_U) else 0.0)
    return found


@settings(max_examples=150, deadline=None)
@given(runs())
def test_float64_equals_the_reference(run):
    assert worst(run, torch.float64) <= 1e-12


@pytest.mark.parametrize("coupling", COUPLINGS)
@pytest.mark.parametrize("shrink", [0.3, 0.9, 0.999999])
def test_rows_that_fade_before_momentum(shrink, coupling):
    """Decay of a step above 1 - momentum: the direction of the closed form is that of momentum, not of the rows."""
    chosen = config("momentum", "full", coupling, lr=1e-3, shrink=shrink, momentum=0.9)
    pauses = [("pause", [0] * steps) for steps in (2, 5, 40, 400)]
    actions = [action for pause in pauses for action in (("step", [0]), pause, ("read", [0, 1]))]
    assert worst(Run(chosen, 1000, 2, actions, 0, 1e-3), torch.float64) <= 1e-12


@settings(max_examples=100, deadline=None)
@given(runs())
def test_float32_stays_within_a_few_roundings_a_step(run):
    """A step rounds its row about ten times. With l2 a gradient may nearly cancel the penalty, which costs digits."""
    steps = sum({"step": 1, "pause": len(rows)}.get(kind, 0) for kind, rows in run.actions)
    assert worst(run, torch.float32) <= 8 * 2**-24 * (steps + 1)


@each_mode(way=WAYS)
def test_every_rule_and_decay_equals_the_reference(rule, scope, coupling, way):
    device, kernels = way
    rows_VD = torch.randn(7, DIM, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    chosen = config(rule, scope, coupling, schedule=ScheduleConfig(name="cosine", warmup_steps=3), kernels=kernels)
    table, optimizer = start(chosen, rows_VD.to(device), total_steps=30)
    reference = DenseReference(rows_VD, chosen, total_steps=30)
    for rows_U, grad_UD in batches(2, 30, 7):
        optimizer.step(rows_U.to(device), grad_UD.to(device))
        reference.step(rows_U, grad_UD)
    torch.testing.assert_close(table.flush().cpu(), reference.rows_VD, rtol=1e-12, atol=1e-12)
    compare_state(optimizer, reference)


def compare_state(optimizer: SparseOptimizer, reference: DenseReference) -> None:
    """Assert that the accumulators equal those of the reference."""
    for name, slot in optimizer._rule.slots.items():
        expected_VD = {"buffer": reference.first_VD, "moment1": reference.first_VD}.get(name, reference.second_VD)
        expected = expected_VD if slot.dim() == 2 else expected_VD[:, 0]
        torch.testing.assert_close(slot.cpu(), expected, rtol=1e-12, atol=1e-12)


@each_mode(kernels=KERNELS[::-1])
@pytest.mark.long
def test_long_gaps(rule, scope, coupling, kernels):
    """One row is idle for far longer than momentum lasts, one is never touched.

    With the kernels in reverse, a rule and decay meets those that the test above leaves out.
    """
    rows_VD = torch.randn(3, DIM, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    schedule = ScheduleConfig(name="cosine", warmup_steps=20)
    chosen = config(rule, scope, coupling, shrink=1e-4, schedule=schedule, kernels=kernels)
    table, optimizer = start(chosen, rows_VD, total_steps=1300)
    reference = DenseReference(rows_VD, chosen, total_steps=1300)
    for t in range(1300):
        rows_U = torch.tensor({0: [0], 3: [0], 5: [1, 0], 600: [1]}.get(t, []), dtype=torch.int64)
        optimizer.step(rows_U, rows_VD[rows_U] + t)
        reference.step(rows_U, rows_VD[rows_U] + t)
        if t == 900:
            torch.testing.assert_close(table.read(rows_U), reference.rows_VD[rows_U], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(table.flush(), reference.rows_VD, rtol=1e-12, atol=1e-12)
    compare_state(optimizer, reference)


@each_mode(kernels=KERNELS, dtype=DTYPES)
def test_lazy_and_sweep_agree(rule, scope, coupling, kernels, dtype):
    """Replay gives the same bits as the sweep, as its arithmetic is the same."""
    rows_VD, found = torch.randn(7, DIM, generator=torch.Generator().manual_seed(1)).to(dtype), {}
    for idle in ("lazy", "sweep"):
        table, optimizer = start(config(rule, scope, coupling, idle=idle, kernels=kernels), rows_VD)
        for rows_U, grad_UD in batches(2, 30, 7, dtype):
            optimizer.step(rows_U, grad_UD)
        found[idle] = table.flush()
        replays = isinstance(optimizer._deferred, Replay)
    torch.testing.assert_close(found["lazy"], found["sweep"], rtol=0 if replays else 1e-5, atol=0 if replays else 1e-6)


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("shrink", SHRINKS)
def test_rows_never_touched_decay_exactly(shrink, kernels):
    """Nothing cancels here, so each element agrees with the sweep relative to itself, however small it is."""
    rows_VD = torch.randn(4, DIM, dtype=torch.float64)
    chosen = config(
        scope="full", shrink=shrink, schedule=ScheduleConfig(name="linear", warmup_steps=7), kernels=kernels
    )
    table, optimizer = start(chosen, rows_VD, total_steps=40)
    reference = DenseReference(rows_VD, chosen, total_steps=40)
    for _ in range(40):
        optimizer.step(torch.tensor([3]), torch.ones(1, DIM, dtype=torch.float64))
        reference.step(torch.tensor([3]), torch.ones(1, DIM, dtype=torch.float64))
    idle = torch.arange(3)
    torch.testing.assert_close(table.read(idle), reference.rows_VD[idle], rtol=1e-12, atol=1e-300)
    assert shrink == 0 or (table.read(idle).abs() < rows_VD[idle].abs()).all()


@pytest.mark.parametrize(("rule", "coupling", "kernels"), pairwise(list(RULES), COUPLINGS, KERNELS))
@pytest.mark.long
def test_a_row_first_touched_after_a_long_time(rule, coupling, kernels):
    steps = 400 if kernels == "triton" else 10_000  # a step takes milliseconds in the interpreter
    rows_VD = torch.randn(2, DIM, dtype=torch.float64)
    schedule = ScheduleConfig(name="cosine", warmup_steps=100)
    chosen = config(rule, "full", coupling, shrink=1e-3, schedule=schedule, kernels=kernels)
    table, optimizer = start(chosen, rows_VD, total_steps=steps + 1)
    reference = DenseReference(rows_VD, chosen, total_steps=steps + 1)
    none_UD = torch.zeros(0, DIM, dtype=torch.float64)
    for _ in range(steps - 1):
        optimizer.step(EMPTY, none_UD)
        reference.step(EMPTY, none_UD)
    for _ in range(2):
        optimizer.step(torch.tensor([1]), rows_VD[1:])
        reference.step(torch.tensor([1]), rows_VD[1:])
    # Adaptive rules divide two numbers near 0, which leaves no relative precision.
    atol = 1e-14 if coupling == "l2" and rule not in ("sgd", "momentum") else 0
    torch.testing.assert_close(table.flush(), reference.rows_VD, rtol=1e-12, atol=atol)


@pytest.mark.parametrize("kernels", KERNELS)
def test_more_decay_than_the_exponent_range_of_float64(kernels):
    """At e^-0.7 a step an idle row reaches 0 within 1000 steps; touched rows must not be affected."""
    rows_VD = torch.randn(3, DIM, dtype=torch.float64)
    chosen = config("sgd", "full", shrink=0.5, kernels=kernels)
    table, optimizer = start(chosen, rows_VD, total_steps=2500)
    reference = DenseReference(rows_VD, chosen, total_steps=2500)
    for t in range(2500):
        rows_U = torch.tensor([1]) if t % 7 == 3 else EMPTY
        optimizer.step(rows_U, rows_VD[rows_U])
        reference.step(rows_U, rows_VD[rows_U])
        if t % 100 == 5:
            read_VD = table.read(torch.arange(3))
            torch.testing.assert_close(read_VD, reference.rows_VD, rtol=1e-12, atol=1e-270)


@pytest.mark.parametrize("kernels", KERNELS)
def test_decay_comes_before_the_rule(kernels):
    """By hand: the row decays, then the gradient changes it, and this change does not decay."""
    table, optimizer = start(config(scope="full", lr=0.25, shrink=0.5, kernels=kernels), torch.ones(2, 1))
    optimizer.step(torch.tensor([0]), torch.ones(1, 1))
    assert table.read(torch.tensor([0, 1])).tolist() == [[0.5 - 0.25], [0.5]]


@pytest.mark.parametrize("kernels", KERNELS)
def test_reading_changes_nothing_and_returns_copies(kernels):
    table, optimizer = start(config(scope="full", kernels=kernels), torch.randn(3, DIM))
    optimizer.step(torch.tensor([1]), torch.ones(1, DIM))
    stored_VD = table.stored_VD.clone()
    first = table.read(torch.arange(3))
    first_value = first.clone()
    first.zero_()
    assert torch.equal(table.stored_VD, stored_VD)
    assert torch.equal(table.read(torch.arange(3)), first_value)


@each_mode(kernels=KERNELS)
def test_a_step_changes_touched_rows_only(rule, scope, coupling, kernels):
    table, optimizer = start(config(rule, scope, coupling, kernels=kernels), torch.randn(4, DIM))
    optimizer.step(torch.arange(4), torch.randn(4, DIM))
    table.flush()
    before = {name: slot.clone() for name, slot in optimizer._rule.slots.items()}
    stored_VD, grad_UD = table.stored_VD.clone(), torch.randn(2, DIM)
    given_UD = grad_UD.clone()
    optimizer.step(torch.tensor([3, 1]), grad_UD)
    assert torch.equal(grad_UD, given_UD)
    for name, slot in [*optimizer._rule.slots.items(), ("rows", table.stored_VD)]:
        was = before.get(name, stored_VD)
        assert torch.equal(slot[[0, 2]], was[[0, 2]]), name
        assert not torch.equal(slot[[1, 3]], was[[1, 3]]), name


@each_pair(kernels=KERNELS)
def test_a_shard_without_rows(rule, scope, coupling, kernels):
    table = Table("items", Partition(rows=1, buckets=2, workers=2), 1, torch.zeros(0, DIM))
    optimizer = SparseOptimizer(table, config(rule, scope, coupling, kernels=kernels), total_steps=3)
    for _ in range(3):
        optimizer.step(EMPTY, torch.zeros(0, DIM))
    assert table.read(EMPTY).shape == table.flush().shape == (0, DIM)
    assert optimizer.state()["t"] == 3
    optimizer.load(optimizer.state())


def test_how_idle_rows_are_updated():
    stay, closed, replay = (
        "stay as they are",
        "are updated when read, in closed form",
        "are updated when read, by replay of the missed steps",
    )
    cases = [
        ("sgd", "none", "decoupled", 0.1, stay),
        ("sgd", "in_batch", "decoupled", 0.1, stay),
        ("sgd", "full", "decoupled", 0.0, stay),
        ("sgd", "full", "l2", 0.1, closed),
        ("lazy_adam", "full", "decoupled", 0.1, closed),
        ("lazy_adam", "full", "l2", 0.1, replay),
        ("momentum", "none", "decoupled", 0.1, closed),
        ("momentum", "full", "l2", 0.1, closed),
        ("adam", "none", "decoupled", 0.1, replay),
    ]
    for rule, scope, coupling, shrink, how in cases:
        table, optimizer = start(config(rule, scope, coupling, shrink=shrink), torch.zeros(2, DIM))
        assert optimizer.idle_rows == how, (rule, scope, coupling, shrink)
        assert (table.deferred is None) == (how == stay)
    _, optimizer = start(config("adam", idle="sweep"), torch.zeros(2, DIM))
    assert optimizer.idle_rows == "are updated at each step"


@pytest.mark.parametrize("scope", ["in_batch", "full"])
def test_each_table_decays_at_its_own_strength(scope):
    rows_VD = torch.randn(4, DIM, dtype=torch.float64)
    chosen = OptimConfig(
        rule="adagrad", lr=0.1, decay=DecayConfig(scope=scope, strength=1.0, tables={"users": 0.0, "items": 3.0})
    )
    cases = [("users", None, 0.0), ("items", None, 3.0), ("others", None, 1.0)]
    # The specification of a table gives another default, which the configuration overrides by name.
    for name, own, strength in [*cases, ("items", 2.0, 3.0), ("others", 2.0, 2.0), ("others", 0.0, 0.0)]:
        table = Table(name, Partition(4, 4, 1), 0, rows_VD.clone(), own)
        optimizer, reference = SparseOptimizer(table, chosen, 10), DenseReference(rows_VD, chosen, 10, name, own)
        assert reference.strength == strength
        assert (table.deferred is not None) == (scope == "full" and strength > 0)
        for rows_U, grad_UD in batches(2, 10, 4):
            optimizer.step(rows_U, grad_UD)
            reference.step(rows_U, grad_UD)
        torch.testing.assert_close(table.flush(), reference.rows_VD, rtol=1e-12, atol=1e-12)


@each_mode(kernels=KERNELS)
def test_rows_in_the_batch_stay_within_their_bounds(rule, scope, coupling, kernels):
    """The reference with its rows clamped after each step; other rows are left as they are, also beyond the bounds."""
    rows_VD, (low, high) = 2 * torch.randn(7, DIM, dtype=torch.float64), (0.0, 1.0)
    chosen = config(rule, scope, coupling, shrink=0.05, kernels=kernels)
    table = Table("items", Partition(7, 7, 1), 0, rows_VD.clone(), bounds=(low, high))
    optimizer, reference = SparseOptimizer(table, chosen, 40), DenseReference(rows_VD, chosen, 40)
    for rows_U, grad_UD in batches(2, 40, 6):
        optimizer.step(rows_U, 3 * grad_UD)
        reference.step(rows_U, 3 * grad_UD)
        reference.rows_VD[rows_U] = reference.rows_VD[rows_U].clamp(low, high)
        read_UD = table.read(rows_U)
        assert ((read_UD >= low - 1e-12) & (read_UD <= high + 1e-12)).all()
    torch.testing.assert_close(table.flush(), reference.rows_VD, rtol=1e-12, atol=1e-12)
    assert not ((table.stored_VD[6] >= low) & (table.stored_VD[6] <= high)).all()  # never in a batch


def test_kernels_for_another_device_are_refused():
    with pytest.raises(UserError, match="numba runs on CPUs, but the tables are on meta; use auto or reference"):
        start(config(kernels="numba"), torch.zeros(2, DIM, device="meta"))


@pytest.mark.parametrize("row", [-1, 4])
def test_an_invalid_row_index_is_an_error(row):
    table, optimizer = start(config(scope="full", kernels="numba"), torch.zeros(4, DIM))
    with pytest.raises(IndexError):
        optimizer.step(torch.tensor([0, row]), torch.zeros(2, DIM))
    with pytest.raises(IndexError):
        table.read(torch.tensor([0, row]))


@each_mode()
@pytest.mark.long
def test_threads_change_no_bit(rule, scope, coupling):
    """Nor do the other rows of a batch, so neither does the number of workers."""
    found, before = [], torch.get_num_threads()
    for threads in (1, 2):
        torch.set_num_threads(threads)
        table, optimizer = start(
            config(rule, scope, coupling, kernels="numba"), torch.linspace(-1, 1, 5000).view(1000, 5)
        )
        for rows_U, grad_UD in batches(4, 7, 1000, torch.float32):
            optimizer.step(rows_U, grad_UD)
        found.append(table.read(torch.arange(1000)))
    torch.set_num_threads(before)
    assert torch.equal(*found)


def test_gradients_of_another_shape_or_dtype_are_refused():
    _, optimizer = start(config(), torch.zeros(3, DIM))
    for local_U, grad_UD in [
        (torch.tensor([0, 1]), torch.zeros(1, DIM)),
        (torch.tensor([0]), torch.zeros(1, DIM + 1)),
        (torch.tensor([0]), torch.zeros(1, DIM, dtype=torch.float64)),
        (torch.tensor([0], dtype=torch.int32), torch.zeros(1, DIM)),
    ]:
        with pytest.raises(AssertionError):
            optimizer.step(local_U, grad_UD)
    assert optimizer.t == 0


def test_decay_that_float32_cannot_resolve_is_noted():
    cases = [
        ("sgd", "in_batch", "decoupled", 1e-9, True),
        ("lazy_adam", "in_batch", "decoupled", 1e-7, False),
        ("adam", "full", "decoupled", 1e-9, True),
        ("lazy_adam", "full", "decoupled", 1e-9, False),  # by the scale, in float64
        ("adam", "full", "l2", 1e-9, False),
        ("sgd", "none", "decoupled", 1e-9, False),
    ]
    for rule, scope, coupling, shrink, noted in cases:
        _, optimizer = start(config(rule, scope, coupling, shrink=shrink), torch.zeros(2, DIM))
        assert (optimizer.precision_note is not None) == noted, (rule, scope, coupling, shrink)
    assert (
        "items decay by 1.0e-09 a step"
        in start(config("sgd", "in_batch", shrink=1e-9), torch.zeros(1, 1))[1].precision_note
    )
