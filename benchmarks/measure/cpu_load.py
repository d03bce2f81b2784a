"""The share of the cores used by processes other than this benchmark's; 0 on systems without /proc."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

_PROC = Path("/proc")
_IDLE, _IOWAIT = 3, 4
_QUIET, _DISTURBED = 0.05, 0.1  # shares of the cores

T = TypeVar("T")


def undisturbed(work: Callable[[], T], patience_s: float) -> tuple[T, float]:
    """Call `work` when the machine is quiet, and again if other processes used a tenth of the cores meanwhile.

    Args:
        work: a repetition of a measurement.
        patience_s: limit for waiting and repeating, in seconds; with 0, `work` is called once, at any load.

    Returns:
        The result at the lowest load, and that load: the share of the cores that other processes used.
    """
    until, found = time.monotonic() + patience_s, []
    while True:
        while other_load() > _QUIET and time.monotonic() < until:
            time.sleep(1.0)
        clock = CpuClock.read()
        result = work()
        found.append((clock.share_of_others(), result))
        if found[-1][0] < _DISTURBED or time.monotonic() > until:
            share, result = min(found, key=lambda pair: pair[0])
            return result, share


def other_load(seconds: float = 0.3) -> float:
    """Return the share of all cores that other processes use while this one sleeps."""
    clock = CpuClock.read()
    time.sleep(seconds)
    return clock.share_of_others()


@dataclass(frozen=True)
class CpuClock:
    """CPU time counters of the machine and of this process tree, in ticks."""

    busy: int
    total: int
    own: int

    @classmethod
    def read(cls) -> "CpuClock":
        """Return the current counters."""
        if not (_PROC / "stat").exists():
            return cls(0, 0, 0)
        ticks = [int(text) for text in (_PROC / "stat").read_text().split(maxsplit=9)[1:9]]
        return cls(sum(ticks) - ticks[_IDLE] - ticks[_IOWAIT], sum(ticks), _own_ticks())

    def share_of_others(self) -> float:
        """Return the share of all cores that other processes have used since these counters were read."""
        now = CpuClock.read()
        others = (now.busy - self.busy) - (now.own - self.own)
        return max(0.0, others / max(1, now.total - self.total))


def _own_ticks() -> int:
    """Return the CPU time of this process and its descendants, in ticks."""
    parent: dict[int, int] = {}
    ticks: dict[int, int] = {}
    for process in _PROC.glob("[0-9]*"):
        try:
            fields = (process / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it has just ended
        parent[int(process.name)] = int(fields[1])
        ticks[int(process.name)] = sum(map(int, fields[11:15]))  # including children that have ended
    own = {int((_PROC / "self").readlink().name)}
    while more := {process for process, its_parent in parent.items() if its_parent in own} - own:
        own |= more
    return sum(ticks.get(process, 0) for process in own)
