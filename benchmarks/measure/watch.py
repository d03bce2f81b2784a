"""The workers of a running training: their memory, as the system counts it, and the cores they may use."""

import contextlib
import os
import threading
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

_EVERY_S = 1.0
_MORE_MIB = 1.0  # than before: less is not looked at, as the system counts for 10 ms and more, on the workers' cores
_PAGES_PER_MIB = 2**20 / os.sysconf("SC_PAGE_SIZE")
_TITLE = b"RayTrainWorker"


@dataclass(frozen=True)
class Memory:
    """Peak of one process, MiB."""

    rss: float
    """All pages that it has in memory, also those that other processes have too."""
    pss: float
    """Shared pages count in parts, by how many processes share them."""
    uss: float
    """Its own pages alone."""


class WorkerWatch:
    """Looks at the workers of Ray Train on this machine, from entering to leaving, in a thread of its own."""

    def __init__(self, confine: bool = False) -> None:
        """`confine`: each worker, with all its threads, is given a core of its own."""
        self._confine = confine
        self._peaks: dict[str, Memory] = {}
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    @property
    def most(self) -> Memory | None:
        """Peaks of the worker with the highest."""
        return max(self._peaks.values(), key=lambda memory: memory.rss, default=None)

    def __enter__(self) -> "WorkerWatch":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(_EVERY_S):
            for process in Path("/proc").glob("[0-9]*"):
                before = self._peaks.get(process.name, Memory(0.0, 0.0, 0.0))
                now = _memory(process, before.rss + _MORE_MIB)
                if now is not None:
                    highest = Memory(max(now.rss, before.rss), max(now.pss, before.pss), max(now.uss, before.uss))
                    self._peaks[process.name] = highest
                    if self._confine:
                        _keep_on(process, list(self._peaks).index(process.name))


def _keep_on(process: Path, place: int) -> None:
    """All threads of a process to one of our cores; threads that they start later stay there too."""
    cores = sorted(os.sched_getaffinity(0))
    for thread in (process / "task").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has just ended
            os.sched_setaffinity(int(thread.name), {cores[place % len(cores)]})


def _memory(process: Path, least_mib: float) -> Memory | None:
    """None where it is no worker, or no more, or has less."""
    try:
        if _TITLE not in (process / "cmdline").read_bytes():
            return None
        if int((process / "statm").read_text().split()[1]) / _PAGES_PER_MIB < least_mib:
            return None
        lines = (process / "smaps_rollup").read_text().splitlines()[1:]
    except OSError:
        return None
    kib = {name: int(value.split()[0]) for name, value in (line.split(":") for line in lines)}
    own = kib["Private_Clean"] + kib["Private_Dirty"]
    return Memory(kib["Rss"] / 1024, kib["Pss"] / 1024, own / 1024)
