"""Timing of the parts of a training step."""

from collections.abc import Sequence
from time import perf_counter

PARTS = ("wait", "look_up", "exchange", "compute", "update")
"""Parts of a training step: waiting for the batch, preparing its rows, exchanging values with other workers, forward
and backward, applying gradients."""


class _Stopwatch:
    """Context manager that accumulates time. `contextlib.contextmanager` would cost several times as much a use."""

    __slots__ = ("_clock", "seconds")

    def __init__(self, clock: "_Clock") -> None:
        self._clock = clock
        self.seconds = 0.0

    def __enter__(self) -> None:
        clock, now = self._clock, perf_counter()
        clock.running[-1].seconds += now - clock.since
        clock.since = now
        clock.running.append(self)

    def __exit__(self, *error: object) -> None:
        clock, now = self._clock, perf_counter()
        self.seconds += now - clock.since
        clock.since = now
        clock.running.pop()


class _Clock:
    """The parts that are entered, innermost last, and the time of the last change. The first one is time outside."""

    __slots__ = ("running", "since")

    def __init__(self) -> None:
        self.running, self.since = [_Stopwatch(self)], perf_counter()


class StepMeters:
    """Seconds spent in each named part since the last reset.

        with meters.part("look_up"):
            ...

    Measures wall-clock time of the calling process. GPU kernels run asynchronously: their time counts towards the part
    that first synchronises with them. Parts may be nested, and the time of the inner part counts towards it alone. A
    part may be entered on another thread while this one waits for it, as it waits for the threads of autograd.
    """

    def __init__(self, parts: Sequence[str] = PARTS) -> None:
        clock = _Clock()
        self._parts = {name: _Stopwatch(clock) for name in parts}

    def part(self, name: str) -> _Stopwatch:
        """Return a context manager that adds its duration to `name`. Raises KeyError for an unknown name."""
        return self._parts[name]

    def snapshot(self) -> dict[str, float]:
        """Return the seconds of each part."""
        return {name: part.seconds for name, part in self._parts.items()}

    def reset(self) -> None:
        """Set all parts to zero."""
        for part in self._parts.values():
            part.seconds = 0.0
