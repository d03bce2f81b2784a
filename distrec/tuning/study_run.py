"""One run of a study: trained in its folder, and read from it."""

import json
import logging
import os
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from distrec.core.config import parse
from distrec.core.errors import UserError
from distrec.core.registry import import_modules
from distrec.data.dataset import Dataset
from distrec.training.config import Config
from distrec.training.run_folder import TEST_USERS, Result, RunFolder, remove_checkpoints
from distrec.tuning.study_cells import Cell
from distrec.tuning.trial import run_trial

CURVE = "curve.json"


@dataclass(frozen=True)
class StudyRun:
    """A run to train, or trained.

    Attributes:
        cell: its cell.
        seed: its seed.
        key: hash of what it computes.
        folder: its run folder.
        data: folder of the prepared data.
        tree: its configuration as plain values.
    """

    cell: Cell
    seed: int
    key: str
    folder: Path
    data: Path
    tree: dict[str, Any]

    def result(self) -> Result | None:
        """Return the result; None if it is not finished. Raises UserError if it is damaged."""
        return RunFolder(self.folder).result()


@dataclass(frozen=True)
class Job:
    """What a process needs to train a run."""

    tree: dict[str, Any]
    data: Path
    threads: int


def train_run(job: Job, stops: Callable[[], bool]) -> str | None:
    """Train a run to its end, or on from its last checkpoint. Return an error, None without one."""
    curve: list[dict[str, Any]] = []

    def on_epoch(event: dict[str, Any]) -> bool:
        curve.append({key: event[key] for key in ("epoch", "loss", "seconds", "metrics") if key in event})
        return stops()

    threads = torch.get_num_threads()
    try:
        import_modules(job.tree.get("run", {}).get("imports", ()))
        config = parse(Config, job.tree)
        if not config.train.threads:
            torch.set_num_threads(job.threads)
        result = run_trial(config, on_epoch, Dataset.open(job.data))
        if RunFolder(result.folder).result() is not None:  # else it was stopped
            (result.folder / CURVE).write_text(json.dumps(curve))
            remove_checkpoints(result.folder)
        return None
    except UserError as error:
        return str(error)
    except Exception as error:
        logging.getLogger(__name__).exception("a run failed")
        return f"{type(error).__name__}: {error}"
    finally:
        torch.set_num_threads(threads)


def threads_of(processes: int) -> int:
    """Return the threads of each of some processes on this machine."""
    return max(1, min(torch.get_num_threads(), os.cpu_count() or 1) // processes)


def curve_of(folder: Path) -> list[dict[str, Any]]:
    """Return the epochs of a finished run."""
    try:
        curve: list[dict[str, Any]] = json.loads((folder / CURVE).read_text())
        return curve
    except (OSError, ValueError):
        return []


def figures_of(result: Result, ratios: Mapping[str, tuple[str, str]]) -> dict[str, float]:
    """Return the figures of a run by the names of columns."""
    figures = {name.removeprefix("test/"): value for name, value in result.metrics.items()}
    figures |= {"epochs": float(result.epochs), "best_epoch": float(result.tested_epoch or result.epochs)}
    figures |= {"epoch_s": statistics.median(result.timing.epoch_s or (0.0,)), "train_s": result.timing.train_s}
    for name, (above, below) in ratios.items():
        if above in figures and figures.get(below):
            figures[name] = figures[above] / figures[below]
    return figures


def users_of(folder: Path, metric: str) -> dict[Any, float]:
    """Return a metric of each user on the test part; empty if it is not kept."""
    file = folder / TEST_USERS
    try:
        table = pq.read_table(file, columns=["user", metric])
    except (OSError, pa.ArrowException):  # also where it has no such column
        return {}
    return dict(zip(table["user"].to_pylist(), table[metric].to_pylist(), strict=True))
