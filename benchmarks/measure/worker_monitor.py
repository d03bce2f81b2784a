"""A monitor of the workers of a running training: their memory as the system counts it, and their CPU affinity."""

import contextlib
import os
import threading
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

_POLL_S = 1.0
# Memory is measured again once RSS has grown by this much: it takes 10 ms and more of a core that the worker uses.
_GROWTH_MIB = 1.0
_PAGES_PER_MIB = 2**20 / os.sysconf("SC_PAGE_SIZE")
_TITLE = b"RayTrainWorker"


@dataclass(frozen=True)
class Memory:
    """Peak memory of one process, MiB."""

    rss: float
    """Resident set size: all resident pages, shared or not."""
    pss: float
    """Proportional set size: a shared page is divided by the number of processes that share it."""
    uss: float
    """Unique set size: private pages only."""


class WorkerMonitor:
    """Polls the Ray Train workers of this machine in a thread, while its context is open."""

    def __init__(self, confine: bool = False) -> None:
        """`confine`: bind each worker, with all its threads, to a core of its own."""
        self._confine = confine
        self._peaks: dict[str, Memory] = {}
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._poll, daemon=True)

    @property
    def peak(self) -> Memory | None:
        """Peaks of the worker with the highest RSS; None if no worker was seen."""
        return max(self._peaks.values(), key=lambda memory: memory.rss, default=None)

    def __enter__(self) -> "WorkerMonitor":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()

    def _poll(self) -> None:
        while not self._done.wait(_POLL_S):
            for process in Path("/proc").glob("[0-9]*"):
                before = self._peaks.get(process.name, Memory(0.0, 0.0, 0.0))
                now = _memory(process, before.rss + _GROWTH_MIB)
                if now is not None:
                    highest = Memory(max(now.rss, before.rss), max(now.pss, before.pss), max(now.uss, before.uss))
                    self._peaks[process.name] = highest
                    if self._confine:
                        _bind(process, list(self._peaks).index(process.name))


def _bind(process: Path, index: int) -> None:
    """Bind all threads of a process to one core. Threads that they start later inherit the binding."""
    cores = sorted(os.sched_getaffinity(0))
    for thread in (process / "task").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has just ended
            os.sched_setaffinity(int(thread.name), {cores[index % len(cores)]})


def _memory(process: Path, least_mib: float) -> Memory | None:
    """Return the memory of a worker; None if the process is no worker, has ended, or has an RSS below `least_mib`."""
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
