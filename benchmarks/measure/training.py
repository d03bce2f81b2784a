"""A whole training through Ray, as `distrec train` runs it, and the durations of its steps."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from distrec.tracking.meters import PARTS
from distrec.training.config import Config, load_config
from distrec.training.driver import train
from measure.worker_monitor import Memory, WorkerMonitor


@dataclass(frozen=True)
class Training:
    """Results of a training in its steady state: without the first epoch."""

    config: Config
    interactions: int
    steps: int
    epoch_s: list[float]
    split_ms: dict[str, list[float]]
    """Milliseconds of a step by part, one value for each epoch."""
    first_batch_s: float
    overhead_s: float
    """From start to end, without the epochs and without the start of Ray, which is running already."""
    memory: Memory | None
    """Peak of the worker with the highest RSS."""

    @property
    def step_ms(self) -> list[float]:
        """Mean duration of a step in each epoch."""
        return [seconds / self.steps * 1e3 for seconds in self.epoch_s]


def run_training(settings: Sequence[str], epochs: int, confine: bool = False) -> Training:
    """Train once in a temporary folder, without evaluation, and with a checkpoint after the last epoch only.

    Args:
        settings: `key=value` overrides, and at most one configuration file.
        epochs: number of epochs.
        confine: bind each worker and its stream to a core of its own.
    """
    files, overrides = [s for s in settings if "=" not in s], [s for s in settings if "=" in s]
    events: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder, WorkerMonitor(confine) as monitor:
        overrides += [f"train.epochs={epochs}", f"train.checkpoint_every={epochs}", f"run.dir={folder}/run"]
        overrides += ["eval.every=0", "tracking.enabled=false"]
        config = load_config(files[0] if files else None, overrides)
        result = train(config, on_event=events.append)
    steady = [event for event in events if event["kind"] == "epoch"][1:]
    steps = -(-result.interactions // config.train.batch_size)
    return Training(
        config,
        result.interactions,
        steps,
        [event["seconds"] for event in steady],
        {part: [event["split"][part] / steps * 1e3 for event in steady] for part in PARTS},
        result.timing.first_batch_s,
        result.timing.total_s - result.timing.train_s,
        monitor.peak,
    )
