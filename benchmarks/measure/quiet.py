"""What other people's processes take of the machine while something is measured; 0 where the system does not say."""

import time
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")
_IDLE, _IOWAIT = 3, 4


def share_of_others(seconds: float = 0.3) -> float:
    """What they take now, as a share of all cores. We sleep meanwhile."""
    watch = Watch.start()
    time.sleep(seconds)
    return watch.share()


@dataclass(frozen=True)
class Watch:
    """The clocks of the processors and of our own processes at one time, in ticks."""

    busy: int
    passed: int
    ours: int

    @classmethod
    def start(cls) -> "Watch":
        """Now."""
        if not (_PROC / "stat").exists():
            return cls(0, 0, 0)
        ticks = [int(word) for word in (_PROC / "stat").read_text().split(maxsplit=9)[1:9]]
        return cls(sum(ticks) - ticks[_IDLE] - ticks[_IOWAIT], sum(ticks), _own_ticks())

    def share(self) -> float:
        """What others took since then, as a share of all cores."""
        now = Watch.start()
        others = (now.busy - self.busy) - (now.ours - self.ours)
        return max(0.0, others / max(1, now.passed - self.passed))


def _own_ticks() -> int:
    """Of this process, all that it has started, and all that these have started."""
    parent: dict[int, int] = {}
    ticks: dict[int, int] = {}
    for process in _PROC.glob("[0-9]*"):
        try:
            fields = (process / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it has just ended
        parent[int(process.name)] = int(fields[1])
        ticks[int(process.name)] = sum(map(int, fields[11:15]))  # with those of children that have ended
    own = {int((_PROC / "self").readlink().name)}
    while more := {process for process, of in parent.items() if of in own} - own:
        own |= more
    return sum(ticks.get(process, 0) for process in own)
