"""What the cases of the speed benchmark share: the settings, the data, the trainings and the rivals."""

import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import torch

from distrec.core.errors import UserError
from measure.data import Data, gather
from measure.floor import Rates, measure_rates
from measure.job import Job, run_job
from measure.quiet import Watch, share_of_others
from measure.rival import Rival

CORES, DIM = 2, 64
_QUIET, _DISTURBED = 0.05, 0.1  # shares of the cores
_RIVALS = Path(__file__).parents[1] / "rivals"

T = TypeVar("T")


@dataclass
class Bench:
    """One run of the benchmark."""

    quick: bool
    patience: float
    """Seconds that a repetition may wait, or be made again, until other people's processes leave the machine alone."""
    folder: Path
    """For what is made on the way; thrown away at the end."""
    rivals_python: Path
    words: tuple[str, ...] = ()
    """What the case `job` trains."""
    rates: Rates = Rates(0.0, 0.0)
    """The best so far: what others take must not lower a floor's yardstick."""
    others: list[float] = field(default_factory=list)
    """What others took of the cores during each repetition, as a share."""
    jobs: dict[str, Job] = field(default_factory=dict)
    """The last training of each name."""

    @property
    def rounds(self) -> int:
        """How often ours and theirs take turns."""
        return 1 if self.quick else 3

    @cached_property
    def data(self) -> Data:
        """Gowalla, or data of its size."""
        return gather(self.folder, self.quick)

    @cached_property
    def device(self) -> torch.device:
        """Where our side computes."""
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def train(self, name: str, words: list[str], epochs: int, thin: bool = False, confine: bool = False) -> Job:
        """Trains once, on the whole data or the thin slice, each worker on a core of its own if asked for."""
        given = self.words_on_data(words, thin)
        job = self.undisturbed(lambda: run_job(given, epochs, confine))
        self.jobs[name] = job
        return job

    def words_on_data(self, words: list[str], thin: bool) -> list[str]:
        """The settings of a training on the whole data, or on the thin slice."""
        source = self.data.thin if thin else self.data.whole
        return [f"data.source={source}", "data.valid_fraction=0", f"data.cache={self.folder}/prepared", *words]

    def rival(self, script: str, *words: str) -> Rival:
        """A rival, for a `with` block. The plain loop needs nothing but torch, and takes our environment."""
        python = Path(sys.executable) if script.startswith("plain") else self.rivals_python
        if not python.exists():
            raise UserError(f"{python} is missing: `make bench` installs the rivals; or say --rivals PYTHON")
        return Rival(python, _RIVALS / script, [str(self.data.folder), *words])

    def look_at_machine(self) -> None:
        """Measures its rates once more."""
        self.rates = self.rates.best(self.undisturbed(lambda: measure_rates(self.device)))

    def undisturbed(self, work: Callable[[], T]) -> T:
        """What `work` gives, done when the machine is quiet, and again if others took a tenth of the cores meanwhile.

        With no patience it is done once, whatever others do.
        """
        until, found = time.monotonic() + self.patience, []
        while True:
            while share_of_others() > _QUIET and time.monotonic() < until:
                time.sleep(1.0)
            watch = Watch.start()
            result = work()
            found.append((watch.share(), result))
            if found[-1][0] < _DISTURBED or time.monotonic() > until:
                share, result = min(found, key=lambda pair: pair[0])
                self.others.append(share)
                return result


def two_cores() -> None:
    """Keeps this process and all that it starts on two cores, but where a GPU has to be fed."""
    if torch.cuda.is_available():
        return
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])
    torch.set_num_threads(CORES)
