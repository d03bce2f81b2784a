import time

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
    assert seconds["compute"] > 0, "a snapshot stays as it was"


def test_a_part_that_raises_is_counted_and_the_error_goes_through():
    meters = StepMeters(("only",))
    with pytest.raises(ZeroDivisionError), meters.part("only"):
        1 / 0  # noqa: B018
    assert meters.snapshot()["only"] > 0
    with pytest.raises(KeyError):
        meters.part("onyl")


def test_a_use_costs_less_than_2_us():
    meters, uses = StepMeters(), 20_000
    best = min(_seconds(meters, uses) for _ in range(5))
    assert best / uses < 2e-6


def _seconds(meters, uses):
    began = time.perf_counter()
    for _ in range(uses):
        with meters.part("update"):
            pass
    return time.perf_counter() - began
