"""Arithmetic of deferred full-table decay."""

import math

import pytest
import torch

from distrec.kernels.dispatch import kernels_for
from distrec.optim.decay import FullDecay
from distrec.optim.rules import RULES
from tests.optim.cases import DIM, KERNELS, batches, config, start

pytestmark = pytest.mark.parametrize("kernels", KERNELS)
NONE = torch.zeros(0, dtype=torch.int64)


def full_decay(strength: float, kernels: str) -> FullDecay:
    return FullDecay(strength, kernels_for(kernels, torch.device("cpu"), torch.float32, lambda local: local))


def advance(decay: FullDecay, lr: float) -> None:
    """Take a step that touches no row. The shard is empty: decay must not visit rows either."""
    decay.prepare_step(torch.zeros(0, 1), NONE, lr, 1)


def test_a_flush_gives_exactly_the_rows_that_were_read(kernels):
    for dtype in (torch.float32, torch.float64):
        table, optimizer = start(config("lazy_adam", "full", kernels=kernels), torch.randn(6, DIM, dtype=dtype))
        for rows_U, grad_UD in batches(1, 12, 6, dtype):
            optimizer.step(rows_U, grad_UD)
        read = table.read(torch.arange(6))
        assert not torch.equal(read, table.stored_VD), "nothing was pending: the test would show nothing"
        assert torch.equal(table.flush(), read)
        assert torch.equal(table.read(torch.arange(6)), read)
        assert torch.equal(table.flush(), read), "a second flush must change nothing"


def test_reading_does_not_change_the_stored_rows(kernels):
    decay, rows_VD = full_decay(1.0, kernels), torch.ones(2, DIM)
    advance(decay, 0.5)
    assert torch.equal(decay.read(rows_VD, torch.tensor([1, 0])), torch.full((2, DIM), 0.5))
    assert torch.equal(rows_VD, torch.ones(2, DIM))


def test_a_flush_in_between_does_not_change_the_decay(kernels):
    """Rows of ones show the factor. A flush may cost a rounding; it must neither repeat nor lose a step."""
    rates = [0.1 * (1 + math.sin(k)) for k in range(50)]
    decay, rows_VD = full_decay(0.5, kernels), torch.ones(3, 1, dtype=torch.float64)
    for k, lr in enumerate(rates):
        advance(decay, lr)
        if k % 7 == 6:
            decay.flush_(rows_VD)
            assert not decay.has_pending
            assert torch.equal(decay.read(rows_VD, torch.arange(3)), rows_VD)
    expected = math.prod(1 - 0.5 * lr for lr in rates)
    torch.testing.assert_close(
        decay.read(rows_VD, torch.arange(len(rows_VD))), torch.full_like(rows_VD, expected), rtol=1e-14, atol=0
    )


@pytest.mark.parametrize("shrink", [0.01, 0.5, 0.999, 1 - 2**-53])
def test_the_scale_stays_in_the_range_of_float32(kernels, shrink):
    """The shard is swept before the scale leaves it, and only then: not at each step."""
    decay, rows_VD, sweeps = full_decay(1.0, kernels), torch.ones(2, 1, dtype=torch.float64), 0
    for step in range(5000):
        stored_VD = rows_VD.clone()
        scale = decay.prepare_step(rows_VD, NONE, shrink, step + 1)
        assert 2.0**-60 <= scale < 1
        sweeps += int(not torch.equal(stored_VD, rows_VD))
        rows_VD.clamp_(min=1e-200)  # a row of zeros would not show a sweep
    least = int(5000 * -math.log2(1 - shrink) / 60)
    assert least - 1 <= sweeps <= least * 60 / (60 + math.log2(1 - shrink)) + 1


def test_long_sums_lose_nothing(kernels):
    """After 100,000 steps the error of a plain running sum is 1e-13."""
    decay, terms = full_decay(1.0, kernels), []
    for k in range(100_000):
        lr = 1e-4 * (1 + math.sin(k))
        advance(decay, lr)
        terms.append(math.log1p(-lr))
    factor = decay.read(torch.ones(1, 1, dtype=torch.float64), torch.tensor([0])).item()
    assert factor == pytest.approx(math.exp(math.fsum(terms)), rel=1e-14, abs=0)


@pytest.mark.parametrize("touched", [[], [0]])
def test_float32_rows_get_decay_accumulated_in_float64(kernels, touched):
    """One step of 1e-9 rounds to no change in float32; 20,000 of them shrink a row by 2e-5, also if it is touched."""
    table, optimizer = start(config("sgd", "full", lr=1e-3, shrink=1e-9, kernels=kernels), torch.ones(1, 1))
    steps = 2_000 if kernels == "triton" else 20_000
    rows_U = torch.tensor(touched, dtype=torch.int64)
    for _ in range(steps):
        optimizer.step(rows_U, torch.zeros(len(touched), 1))
    assert table.read(torch.tensor([0])).item() == pytest.approx(math.exp(-1e-9 * steps), rel=1e-7)


@pytest.mark.parametrize("rule", RULES)
def test_at_most_eight_bytes_a_row(kernels, rule):
    _, optimizer = start(config(rule, "full", kernels=kernels), torch.zeros(1000, 1))
    per_row = [t for t in vars(optimizer._deferred).values() if isinstance(t, torch.Tensor) and len(t) == 1000]
    slots = {slot.data_ptr() for slot in optimizer._rule.slots.values()}
    assert sum(t.element_size() for t in per_row if t.data_ptr() not in slots) <= 8


@pytest.mark.parametrize(
    ("rule", "scope", "shrink"),
    [*((rule, "in_batch", 3e-8) for rule in RULES), ("adam", "full", 1e-9), ("momentum", "full", 1e-7)],
)
def test_decay_below_the_resolution_of_float32_is_right_on_average(kernels, rule, scope, shrink):
    """1 - 3e-8 rounds to 1 - 6e-8. A row is rounded after decay and gradient together, which has no bias."""
    # The first steps of Adagrad and Adam have one size, whatever the gradient: few steps leave some bias.
    size, steps, rel = (2_000, 10, 0.1) if kernels == "triton" else (4_000, 100, 0.02)
    generator, local_U = torch.Generator().manual_seed(1), torch.arange(size)
    rows_VD = torch.rand(size, DIM, generator=generator) + 0.5
    chosen = config(rule, scope, lr=1e-3, shrink=shrink, kernels=kernels)
    decayed, plain = (start(c, rows_VD) for c in (chosen, config(rule, lr=1e-3, kernels=kernels)))
    for _ in range(steps):
        grad_UD = torch.randn(size, DIM, generator=generator)
        for _, optimizer in (decayed, plain):
            optimizer.step(local_U, grad_UD)
    removed = (plain[0].flush().double() - decayed[0].flush().double()).mean() / plain[0].stored_VD.double().mean()
    noise = 6e-8 * (steps / (size * DIM)) ** 0.5
    assert removed.item() == pytest.approx(-math.expm1(steps * math.log1p(-shrink)), rel=rel, abs=4 * noise)
