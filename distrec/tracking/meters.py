"""Where the time of a step goes."""

from collections.abc import Sequence
from time import perf_counter
from types import TracebackType

PARTS = ("wait", "look_up", "compute", "update")
"""Of a training step: waiting for the batch, fetching rows, forward and backward, applying gradients."""


class _Part:
    """A stopwatch that adds up. A class rather than `contextlib.contextmanager`, which costs several times as much."""

    __slots__ = ("_began", "seconds")

    def __init__(self) -> None:
        self.seconds = 0.0

    def __enter__(self) -> None:
        self._began = perf_counter()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.seconds += perf_counter() - self._began


class StepMeters:
    """Seconds spent in each named part since the last reset.

        with meters.part("look_up"):
            ...

    It is the time of the calling process. GPU kernels run later: their time falls to the part that first waits for
    them. A part may not be entered inside itself.
    """

    def __init__(self, parts: Sequence[str] = PARTS) -> None:
        self._parts = {name: _Part() for name in parts}

    def part(self, name: str) -> _Part:
        """A context manager that adds its duration to `name`. A name not given at construction is a KeyError."""
        return self._parts[name]

    def snapshot(self) -> dict[str, float]:
        """Seconds by part."""
        return {name: part.seconds for name, part in self._parts.items()}

    def reset(self) -> None:
        """Starts again from zero: call it when an epoch begins."""
        for part in self._parts.values():
            part.seconds = 0.0
