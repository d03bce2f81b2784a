"""One point of the scaling study: steps of some workers without Ray, by part, with memory and bytes on the wire."""

import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from distrec.data.config import DataConfig
from distrec.data.prepare import prepare
from distrec.testing.ranks import run_ranks
from distrec.testing.wire import counted_bytes
from distrec.training.config import load_config
from distrec.training.planning.sizes import Degrees
from distrec.training.trainer import Trainer
from measure.peak_rss import peak_rss

_WARM_UP, _BATCHES = 4, 8
BUCKETS = 64
Shape = tuple[int, int, int]
"""Users, items, training interactions."""


@dataclass(frozen=True)
class Point:
    """A setting to measure."""

    shape: Shape
    workers: int
    settings: tuple[str, ...]
    steps: int = 24


def prepare_shape(shape: Shape, folder: Path, evaluated: int | None = None) -> str:
    """Prepare data with the degrees that `distrec plan` assumes, once. Return the folder.

    Each row has an interaction, so that none is missing from the tables: an item in the test part, or, if only so many
    users are to be evaluated, in the training part.
    """
    users, items, count = shape
    target = folder / "-".join(map(str, (*shape, evaluated)))
    if not target.exists():
        target.mkdir(parents=True)
        random = np.random.default_rng(0)
        user = _drawn(Degrees.log_normal(users, count), random.random(count))
        item = random.permutation(items)[_drawn(Degrees.power_law(items, count), random.random(count))]
        covered = random.integers(0, users, items), np.arange(items)
        train = [(user, item), (np.arange(users), random.integers(0, items, users))]
        train, test = (train, covered) if evaluated is None else ([*train, covered], _pairs(random, evaluated, items))
        user, item = (np.concatenate(columns)[-count:] for columns in zip(*train, strict=True))
        _write(target / "train.parquet", user, item)
        _write(target / "test.parquet", *test)
    config = DataConfig(source=str(target), valid_fraction=0, buckets=BUCKETS, cache=folder / "prepared")
    return str(prepare(config).path.absolute())


def _pairs(random: np.random.Generator, users: int, items: int) -> tuple[np.ndarray, np.ndarray]:
    return np.repeat(np.arange(users), 3), random.integers(0, items, 3 * users)


def _drawn(degrees: Degrees, uniform: np.ndarray) -> np.ndarray:
    """Return rows drawn in proportion to their degrees."""
    edges = np.concatenate([[0.0], np.cumsum(degrees.rows_C * degrees.shares())])
    start = np.concatenate([[0.0], np.cumsum(degrees.rows_C)])
    found = np.interp(uniform * edges[-1], edges, start).astype(np.int64)
    return np.minimum(found, int(round(start[-1])) - 1)


def _write(file: Path, user: np.ndarray, item: np.ndarray) -> None:
    pq.write_table(pa.table({"user": user, "item": item}), file)


def measure(point: Point, source: str) -> dict[str, Any]:
    """Return medians over steps of the slowest worker, in fresh processes of one thread each."""
    arguments = [f"data.source={source}", f"train.workers={point.workers}", *point.settings], point.steps
    if point.workers > 1:
        found = run_ranks(point.workers, _worker, *arguments, timeout_s=600, fresh=True)
    else:
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            found = [pool.submit(_worker, *arguments).result()]
    slowest = max(found, key=lambda worker: worker["step_s"])
    return slowest | {"stream_s": max(worker["stream_s"] for worker in found)}


def _worker(settings: list[str], steps: int) -> dict[str, Any]:
    torch.set_num_threads(1)
    config = load_config(None, [*settings, "train.capture=false"])
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    trainer = Trainer(config, prepare(config.data), device)
    source = trainer.source
    source.batches(0, 0, 1)  # reads the data, compiles the draws
    start = time.perf_counter()
    batches = source.batches(0, 1, min(1 + _BATCHES, source.steps))
    drawing = (time.perf_counter() - start) / len(batches)
    for k in range(_WARM_UP):
        trainer.step(batches[k % len(batches)], batches[(k + 1) % len(batches)])
    parts: list[dict[str, float]] = []
    durations = []
    with counted_bytes() as sent:
        for k in range(steps):
            trainer.timing()
            start = _now(device)
            trainer.step(batches[k % len(batches)], batches[(k + 1) % len(batches)])
            durations.append(_now(device) - start)
            parts.append(trainer.timing())
    figures = {"step_s": statistics.median(durations), "stream_s": drawing}
    if device.type == "cpu":  # a GPU computes a part while the host is at the next one
        figures["parts"] = {name: statistics.median(p[name] for p in parts) for name in parts[0] if name != "wait"}
    return figures | {"sent_bytes": sum(sent) / steps, "calls": len(sent) / steps, "memory": peak_rss()}


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def temporary() -> "tempfile.TemporaryDirectory[str]":
    """Return a temporary folder for the data of the points."""
    return tempfile.TemporaryDirectory(prefix="scaling-")
