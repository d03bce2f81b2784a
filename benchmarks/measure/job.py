"""A whole training through Ray, as `distrec train` runs it, and what its steps took."""

import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from distrec.core.config import load
from distrec.tracking.meters import PARTS
from distrec.training.config import Config
from distrec.training.driver import train
from measure.watch import Memory, WorkerWatch


@dataclass(frozen=True)
class Job:
    """Figures of the steady state: the first epoch is left out."""

    config: Config
    interactions: int
    steps: int
    epoch_s: list[float]
    split_ms: dict[str, list[float]]
    """Milliseconds of a step in each epoch, by part."""
    first_batch_s: float
    around_s: float
    """From start to end, without the epochs and without the start of Ray, which is running already."""
    memory: Memory | None
    """Of the worker that needed most."""

    @property
    def step_ms(self) -> list[float]:
        """In each epoch."""
        return [seconds / self.steps * 1e3 for seconds in self.epoch_s]

    @property
    def median_split_ms(self) -> dict[str, float]:
        return {part: statistics.median(values) for part, values in self.split_ms.items()}


def run_job(words: Sequence[str], epochs: int, confine: bool = False) -> Job:
    """Trains once, in a folder that is thrown away; no evaluation and no checkpoint but the last.

    `confine`: each worker keeps to a core of its own, with its stream.
    """
    files, overrides = [w for w in words if "=" not in w], [w for w in words if "=" in w]
    told: list[dict] = []
    with tempfile.TemporaryDirectory() as folder, WorkerWatch(confine) as watch:
        overrides += [f"train.epochs={epochs}", f"train.checkpoint_every={epochs}", f"run.dir={folder}/run"]
        overrides += ["eval.every=0", "tracking.enabled=false"]
        config = load(Config, Path(files[0]) if files else None, overrides)
        result = train(config, on_event=told.append)
    steady = [event for event in told if event["kind"] == "epoch"][1:]
    steps = -(-result.interactions // config.train.batch_size)
    return Job(
        config,
        result.interactions,
        steps,
        [event["seconds"] for event in steady],
        {part: [event["split"][part] / steps * 1e3 for event in steady] for part in PARTS},
        result.timing.first_batch_s,
        result.timing.total_s - result.timing.train_s,
        watch.most,
    )
