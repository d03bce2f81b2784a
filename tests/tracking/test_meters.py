"""Step meters: sums, errors, and the cost of a use."""

import time
from contextlib import contextmanager

import pytest

from distrec.tracking.meters import PARTS, StepMeters


def test_parts_add_up_and_reset():
    meters = StepMeters()
    for _ in range(3):
        with meters.part("compute"):
            time.sleep(0.01)
    seconds = meters.snapshot()
    assert list(seconds) == list(PARTS)
    assert 0.03 <= seconds["compute"] < 0.3 and seconds["wait"] == 0.0
    meters.reset()
    assert set(meters.snapshot().values()) == {0.0}
    assert seconds["compute"] > 0, "a snapshot is a copy"


def test_a_part_that_raises_is_counted_and_the_error_propagates():
    meters = StepMeters(("only",))
    with pytest.raises(ZeroDivisionError), meters.part("only"):
        1 / 0  # noqa: B018
    assert meters.snapshot()["only"] > 0
    with pytest.raises(KeyError):
        meters.part("onyl")


@pytest.mark.no_cover  # tracing takes longer than a use
def test_a_use_costs_less_than_half_of_a_generator_context_manager():
    """About 1 us against 4: a step has about ten uses. A ratio, measured in turns, holds on a busy machine too."""
    meters, seconds = StepMeters(), {}

    @contextmanager
    def generator_part(name):
        started = time.perf_counter()
        yield
        seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - started

    pairs = [(_seconds(meters.part), _seconds(generator_part)) for _ in range(5)]
    ours, theirs = (min(column) for column in zip(*pairs, strict=True))
    assert ours < 0.5 * theirs


def _seconds(part, uses=20_000):
    started = time.perf_counter()
    for _ in range(uses):
        with part("update"):
            pass
    return time.perf_counter() - started
