"""The arithmetic of put-off decay."""

import math

import pytest
import torch

from distrec.optim.decay import FullDecay
from distrec.optim.kernels.choose import kernels_for

from .cases import DIM, KERNELS, batches, config, start, table_of

CPU = torch.device("cpu")
pytestmark = pytest.mark.parametrize("kernels", KERNELS)


def owing(rows: int, strength: float, kernels: str) -> FullDecay:
    return FullDecay(rows, CPU, strength, kernels_for(kernels, table_of(torch.zeros(1, 1))))


def test_settling_the_shard_gives_exactly_what_a_read_gave(kernels):
    for dtype in (torch.float32, torch.float64):
        table, optimizer = start(config("lazy_adam", "full", kernels=kernels), torch.randn(6, DIM, dtype=dtype))
        for rows_U, grad_UD in batches(1, 12, 6, dtype):
            optimizer.step(rows_U, grad_UD)
        read = table.read(torch.arange(6))
        assert not torch.equal(read, table.stored_VD), "nothing was owed: the test would show nothing"
        assert torch.equal(table.settle(), read)
        assert torch.equal(table.read(torch.arange(6)), read)
        assert torch.equal(table.settle(), read), "settling twice must change nothing"


def test_reading_leaves_what_it_was_given(kernels):
    decay, rows_VD = owing(2, 1.0, kernels), torch.ones(2, DIM)
    decay.advance(0.5)
    assert torch.equal(decay.read(rows_VD, torch.tensor([1, 0])), torch.full((2, DIM), 0.5))
    assert torch.equal(rows_VD, torch.ones(2, DIM))


def test_rebasing_forgets_the_steps_and_nothing_else(kernels):
    """Rows of ones show the factor. Settling in between may cost a rounding, and must not pay twice or lose a step."""
    rates = [0.1 * (1 + math.sin(k)) for k in range(50)]
    decay, rows_VD = owing(3, 0.5, kernels), torch.ones(3, 1, dtype=torch.float64)
    for k, lr in enumerate(rates):
        decay.advance(lr)
        if k % 7 == 6:
            decay.settle_(rows_VD)
            assert not decay.owes
            assert torch.equal(decay.read(rows_VD, torch.arange(3)), rows_VD)
    expected = math.prod(1 - 0.5 * lr for lr in rates)
    torch.testing.assert_close(
        decay.read(rows_VD, torch.arange(len(rows_VD))), torch.full_like(rows_VD, expected), rtol=1e-14, atol=0
    )


def test_the_past_grows_past_their_first_room_and_shrink_to_nothing_when_settled(kernels):
    decay, rows_VD = owing(2, 1.0, kernels), torch.ones(2, 1, dtype=torch.float64)
    for _ in range(3000):
        decay.advance(1e-4)
        if decay.owed.now == 1500:
            rows_VD[0] = decay.read(rows_VD, torch.tensor([0]))
            decay.owed.written_V[0] = 1500
    expected = torch.full((2, 1), (1 - 1e-4) ** 3000, dtype=torch.float64)
    torch.testing.assert_close(decay.read(rows_VD, torch.arange(len(rows_VD))), expected, rtol=1e-12, atol=0)
    room = len(decay.owed.left_S)
    for _ in range(3):
        decay.mark_settled()
        for _ in range(2000):
            decay.advance(1e-4)
    assert len(decay.owed.left_S) == room, "a run that settles now and then must not need more and more room"


def test_long_sums_lose_nothing(kernels):
    """100,000 steps: a plain running sum is off by 1e-13 here."""
    decay, terms = owing(1, 1.0, kernels), []
    for k in range(100_000):
        lr = 1e-4 * (1 + math.sin(k))
        decay.advance(lr)
        terms.append(math.log1p(-lr))
    factor = decay.read(torch.ones(1, 1, dtype=torch.float64), torch.tensor([0])).item()
    assert factor == pytest.approx(math.exp(math.fsum(terms)), rel=1e-14, abs=0)


def test_float32_rows_get_factors_joined_in_float64(kernels):
    """One step of 1e-9 is no step at all in float32; a hundred thousand of them are 1e-4."""
    decay = owing(1, 1e-6, kernels)
    for _ in range(100_000):
        decay.advance(1e-3)
    assert decay.read(torch.ones(1, 1), torch.tensor([0])).item() == pytest.approx(math.exp(-1e-4), rel=1e-7)


def test_at_most_eight_bytes_a_row(kernels):
    decay = owing(1000, 1.0, kernels)
    per_row = [t for t in vars(decay).values() if isinstance(t, torch.Tensor) and len(t) == 1000]
    assert sum(t.element_size() for t in per_row) <= 8
