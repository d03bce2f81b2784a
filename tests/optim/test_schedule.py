"""Learning rate over a run."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distrec.optim.config import ScheduleConfig
from distrec.optim.schedule import learning_rate, plateau_factor
from tests.optim.cases import SCHEDULES


def rates(total: int, **fields) -> list[float]:
    schedule = ScheduleConfig(**fields)
    return [learning_rate(schedule, 8.0, t, total) for t in range(1, total + 1)]


def test_shapes_by_hand():
    assert rates(3) == [8, 8, 8]
    assert rates(6, warmup_steps=4) == [2, 4, 6, 8, 8, 8]
    assert rates(4, name="linear") == [8, 6, 4, 2]
    assert rates(6, name="linear", warmup_steps=2, final_fraction=0.5) == [4, 8, 8, 7, 6, 5]
    assert rates(4, name="cosine") == pytest.approx([8, 4 + 8 / 2**1.5, 4, 4 - 8 / 2**1.5])
    assert rates(6, name="step", warmup_steps=1, every_steps=2, factor=0.5) == [8, 8, 8, 4, 4, 2]


def test_the_final_rate_holds_after_the_last_step():
    for name in ("linear", "cosine"):
        schedule = ScheduleConfig(name=name, final_fraction=0.25)
        assert [learning_rate(schedule, 8.0, t, 5) for t in (6, 7, 100)] == [2, 2, 2]


@given(SCHEDULES, st.floats(1e-9, 10), st.integers(0, 30), st.integers(1, 60))
def test_the_peak_is_lr_and_no_rate_exceeds_it(schedule, lr, total, t):
    """The configuration relies on this when it compares lr * strength with 1."""
    assert 0 <= learning_rate(schedule, lr, t, total) <= lr
    if total > schedule.warmup_steps:
        assert learning_rate(schedule, lr, schedule.warmup_steps + 1, total) == lr


# Repeated values, changes by less than 1e-4 of the best, zeros.
WATCHED = st.lists(st.sampled_from([0.0, 0.1, 0.10000999, 0.100011, 0.2, 0.3]) | st.floats(0, 1), max_size=40)


@settings(deadline=None)  # the first example imports torch's schedulers
@given(WATCHED, st.integers(0, 4), st.sampled_from([0.5, 0.1]), st.sampled_from([0.0, 0.2, 1.0]))
def test_plateau_is_that_of_torch(values, patience, factor, final_fraction):
    schedule = ScheduleConfig(name="plateau", patience=patience, factor=factor, final_fraction=final_fraction)
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    reference = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, mode="max", factor=factor, patience=patience, min_lr=final_fraction, eps=0
    )
    for k, value in enumerate(values):
        reference.step(value)
        assert plateau_factor(schedule, values[: k + 1]) == optimizer.param_groups[0]["lr"]
    assert plateau_factor(ScheduleConfig(), values) == 1.0


def test_plateau_by_hand():
    schedule = ScheduleConfig(name="plateau", patience=1, factor=0.5, final_fraction=0.2)
    values = [0.3, 0.3, 0.2, 0.1, 0.1, 0.4, 0.4, 0.4, 0.4, 0.4]
    found = [plateau_factor(schedule, values[:k]) for k in range(len(values) + 1)]
    assert found == [1, 1, 1, 0.5, 0.5, 0.25, 0.25, 0.25, 0.2, 0.2, 0.2]
