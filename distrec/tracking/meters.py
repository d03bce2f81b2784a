"""Timing of the parts of a training step."""

from collections.abc import Sequence
from time import perf_counter
from types import TracebackType

PARTS = ("wait", "look_up", "compute", "update")
"""Parts of a training step: waiting for the batch, fetching rows, forward and backward, applying gradients."""


class _Stopwatch:
    """Context manager that accumulates time. `contextlib.contextmanager` would cost several times as much a use."""

    __slots__ = ("_started", "seconds")

    def __init__(self) -> None:
        self.seconds = 0.0

    def __enter__(self) -> None:
        self._started = perf_counter()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.seconds += perf_counter() - self._started


class StepMeters:
    """Seconds spent in each named part since the last reset.

        with meters.part("look_up"):
            ...

    Measures wall-clock time of the calling process. GPU kernels run asynchronously: their time counts towards the part
    that first synchronises with them. A part must not be nested in itself.
    """

    def __init__(self, parts: Sequence[str] = PARTS) -> None:
        self._parts = {name: _Stopwatch() for name in parts}

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
