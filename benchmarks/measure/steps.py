"""The duration of training steps without Ray. Imports nothing of distrec: other checkouts are measured with it too."""

import itertools
import statistics
import time
from collections.abc import Callable
from typing import Any


def median_step(trainer: Any, batches: int, warm_up: int, count: int) -> Callable[[], float]:
    """Return a function that takes `count` steps and returns their median duration, s, after some to warm up.

    Args:
        trainer: a trainer of one worker.
        batches: batches to compute in advance, taken in turn.
        warm_up: steps that are not measured.
        count: steps of a measurement.
    """
    drawn = itertools.cycle(trainer.source.batches(0, 0, min(batches, trainer.source.steps)))
    following = next(drawn)

    def step() -> float:
        nonlocal following
        batch, following = following, next(drawn)
        start_s = time.perf_counter()
        trainer.step(batch, following)
        return time.perf_counter() - start_s

    for _ in range(warm_up):
        step()
    return lambda: statistics.median(step() for _ in range(count))
