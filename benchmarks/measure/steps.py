"""The duration of training steps without Ray. Imports nothing of distrec: other checkouts are measured with it too."""

import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any


def median_step(trainer: Any, batches: int, warm_up: int, count: int) -> Callable[[], float]:
    """Return a function that takes `count` steps and returns their median duration, s, after some to warm up.

    Args:
        trainer: a trainer of one worker.
        batches: batches to compute in advance, taken in turn.
        warm_up: steps that are not measured.
        count: steps of a measurement.
    """
    drawn = trainer.source.batches(0, 0, min(batches, trainer.source.steps))
    step = timed_step(trainer, itertools.cycle(drawn))
    for _ in range(warm_up):
        step()
    return lambda: statistics.median(step() for _ in range(count))


def timed_step(trainer: Any, batches: Iterator[Any]) -> Callable[[], float]:
    """Return a function that takes the next step and returns its duration, s, with that of `next(batches)`."""
    following = next(batches)

    def step() -> float:
        nonlocal following
        start_s = time.perf_counter()
        batch, following = following, next(batches)
        trainer.step(batch, following)
        return time.perf_counter() - start_s

    return step
