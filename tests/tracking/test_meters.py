"""Step meters: sums, errors, and the cost of a use."""

import threading
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


def test_time_of_a_nested_part_counts_for_itself_only():
    meters = StepMeters()

    def exchange():
        with meters.part("exchange"):
            time.sleep(0.05)

    started = time.perf_counter()
    with meters.part("compute"):
        exchange()
        thread = threading.Thread(target=exchange)  # as autograd's threads do, while this one waits for them
        thread.start()
        thread.join()
        with meters.part("update"), meters.part("compute"):  # in itself too
            time.sleep(0.03)
    total, seconds = time.perf_counter() - started, meters.snapshot()
    assert seconds["exchange"] >= 0.1 and seconds["compute"] >= 0.03
    assert seconds["update"] < 0.03 and seconds["compute"] < total - 0.1
    assert sum(seconds.values()) == pytest.approx(total, abs=0.03)
    time.sleep(0.1)
    with meters.part("wait"):
        pass
    assert sum(meters.snapshot().values()) < total + 0.05, "time outside of all parts counts for none"


def test_a_part_that_raises_is_counted_and_the_error_propagates():
    meters = StepMeters(("only",))
    with pytest.raises(ZeroDivisionError), meters.part("only"):
        1 / 0  # noqa: B018
    assert meters.snapshot()["only"] > 0
    time.sleep(0.1)
    with meters.part("only"):
        pass
    assert meters.snapshot()["only"] < 0.1, "the part was left"
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
