"""What a process is doing, for lines about work that takes longer than two seconds.

Code that does the work calls `stage`, `advance` and `share`, which are cheap, and without effect unless `reporting` is
active.
"""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

_AFTER_S, _INTERVAL_S = 2.0, 1.0


class _Stage:
    """The present stage of this process; "" for none."""

    def __init__(self, what: str = "", noun: str = "") -> None:
        self.what, self.noun, self.done, self.share = what, noun, 0, 0.0
        self.start = time.monotonic()

    def text(self, now: float) -> str:
        """Return a line such as `reading a.csv: 1,200,000 lines, 3 s`, or "" before it has taken two seconds."""
        if not self.what or now - self.start < _AFTER_S:
            return ""
        count = f"{self.done:,} {self.noun}, " if self.done else f"{self.share:.0%}, " if self.share else ""
        return f"{self.what}: {count}{now - self.start:.0f} s"


_present = _Stage()


def stage(what: str, noun: str = "") -> None:
    """Begin a stage, and end the one before; "" begins none.

    Args:
        what: what is done, such as `reading train.csv`.
        noun: what `advance` counts, such as rows.
    """
    global _present
    _present = _Stage(what, noun)


def advance(count: int) -> None:
    """Count further pieces of the present stage."""
    _present.done += count


def share(done: float) -> None:
    """Set the share of the present stage that is done, in [0, 1]."""
    _present.share = done


@contextlib.contextmanager
def reporting(emit: Callable[[dict[str, Any]], object]) -> Iterator[None]:
    """Call `emit` each second with a `status` event on the present stage, if that has taken two; in another thread."""
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(_INTERVAL_S):
            if text := _present.text(time.monotonic()):
                with contextlib.suppress(Exception):  # the receiver has ended: the work itself will find out
                    emit({"kind": "status", "text": text})

    thread = threading.Thread(target=watch, daemon=True, name="status")
    thread.start()
    try:
        yield
    finally:
        stage("")
        ended.set()
        thread.join()
