"""What the cases of the speed benchmark share: the settings, the data, the trainings and the rivals."""

import contextlib
import os
import sys
import time
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch

from distrec.errors import UserError
from measure.data import Data, gather
from measure.job import Job, run_job
from measure.rival import Rival

CORES, DIM = 2, 64
_RIVALS = Path(__file__).parents[1] / "rivals"


@dataclass
class Bench:
    """One run of the benchmark."""

    quick: bool
    patience: float
    """Seconds to wait at most, before each repetition, for other people's processes to leave the machine alone."""
    folder: Path
    """For what is made on the way; thrown away at the end."""
    rivals_python: Path
    words: tuple[str, ...] = ()
    """What the case `job` trains."""
    busy: list[float] = field(default_factory=list)
    """What others used of the cores, before each repetition, as a share."""
    jobs: dict[str, Job] = field(default_factory=dict)
    """The last training of each name."""

    @property
    def rounds(self) -> int:
        """How often ours and theirs take turns."""
        return 1 if self.quick else 3

    @cached_property
    def data(self) -> Data:
        """Gowalla, or data of its size."""
        return gather(self.folder)

    @cached_property
    def device(self) -> torch.device:
        """Where our side computes."""
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def train(self, name: str, words: list[str], epochs: int, thin: bool = False) -> Job:
        """Trains once, on the whole data or the thin slice."""
        self.wait()
        source = self.data.thin if thin else self.data.whole
        given = [f"data.source={source}", "data.valid_fraction=0", f"data.cache={self.folder}/prepared", *words]
        job = run_job(given, epochs)
        self.jobs[name] = job
        return job

    def rival(self, script: str, *words: str) -> "contextlib.AbstractContextManager[Rival]":
        """Starts a rival in its own environment; the plain loop needs nothing but torch, and takes ours."""
        python = Path(sys.executable) if script.startswith("plain") else self.rivals_python
        if not python.exists():
            raise UserError(f"{python} is missing: `make bench` installs the rivals; or say --rivals PYTHON")
        return Rival(python, _RIVALS / script, [str(self.data.folder), *words])

    def timed(self, rival: Rival) -> float:
        """Seconds of one repetition of a rival, started when the machine is quiet."""
        self.wait()
        return rival.seconds()

    def wait(self) -> None:
        """Waits, but not longer than `patience`, until others use less than a twentieth of the cores."""
        until = time.monotonic() + self.patience
        while (share := _busy_share()) > 0.05 and time.monotonic() < until:
            time.sleep(1.0)
        self.busy.append(share)


def _busy_share(seconds: float = 0.3) -> float:
    """What is used of all cores while we do nothing; 0 where the system does not say."""
    stat = Path("/proc/stat")
    if not stat.exists():
        return 0.0
    before = stat.read_text().split(maxsplit=11)[1:9]
    time.sleep(seconds)
    after = stat.read_text().split(maxsplit=11)[1:9]
    spent = [int(b) - int(a) for a, b in zip(before, after, strict=True)]
    return 1 - (spent[3] + spent[4]) / max(1, sum(spent))  # idle and waiting for a disk


def two_cores() -> None:
    """Keeps this process and all that it starts on two cores."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])
    torch.set_num_threads(CORES)
