"""What all cases of the speed benchmark share: options, data, trainings and rivals."""

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import torch

from measure import cpu_load
from measure.data import Data, prepare_data
from measure.rival import Rival, open_rival
from measure.roofline import Rates, measure_rates
from measure.training import Training, run_training

CORES, DIM = 2, 64

T = TypeVar("T")


@dataclass
class Bench:
    """One run of the benchmark."""

    quick: bool
    patience: float
    """Limit for waiting until other processes leave the machine idle, and for repeating, seconds a repetition."""
    folder: Path
    """Temporary folder."""
    rivals_python: Path
    settings: tuple[str, ...] = ()
    """Configuration file and overrides that the case `job` trains."""
    rates: Rates = Rates(0.0, 0.0)
    """The best rates so far: load by other processes must not lower them."""
    others: list[float] = field(default_factory=list)
    """Share of the cores that other processes used during each repetition."""
    trainings: dict[str, Training] = field(default_factory=dict)
    """The last training of each name."""

    @property
    def rounds(self) -> int:
        """Interleaved rounds of distrec and its rivals."""
        return 1 if self.quick else 3

    @cached_property
    def data(self) -> Data:
        """Gowalla, or synthetic data of its size."""
        return prepare_data(self.folder, self.quick)

    @cached_property
    def device(self) -> torch.device:
        """Device of distrec's trainings."""
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def train(self, name: str, settings: list[str], epochs: int, thin: bool = False, confine: bool = False) -> Training:
        """Train once, on the whole data or the thin slice; with `confine`, each worker on a core of its own."""
        given = self.with_data(settings, thin)
        self.trainings[name] = self.undisturbed(lambda: run_training(given, epochs, confine))
        return self.trainings[name]

    def with_data(self, settings: list[str], thin: bool = False) -> list[str]:
        """Return the settings of a training on the whole data, or on the thin slice."""
        source = self.data.thin if thin else self.data.whole
        return [f"data.source={source}", "data.valid_fraction=0", f"data.cache={self.folder}/prepared", *settings]

    def rival(self, script: str, *arguments: str) -> Rival:
        """Return a rival, to be opened by `with`. The plain loop needs only torch, and runs in this environment."""
        python = Path(sys.executable) if script.startswith("plain") else self.rivals_python
        return open_rival(python, script, [str(self.data.folder), *arguments])

    def update_rates(self) -> None:
        """Measure the rates of the machine once more."""
        self.rates = self.rates.best(self.undisturbed(lambda: measure_rates(self.device)))

    def undisturbed(self, work: Callable[[], T]) -> T:
        """Return the result of `cpu_load.undisturbed`, and record the load."""
        result, share = cpu_load.undisturbed(work, self.patience)
        self.others.append(share)
        return result


def two_cores() -> None:
    """Bind this process and its children to two cores, except on a machine with a GPU."""
    if torch.cuda.is_available():
        return
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])
    torch.set_num_threads(CORES)
