"""The loop over epochs of one worker: stream, evaluations, checkpoints. It knows a learner, and not where it runs."""

import math
import tempfile
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from distrec.core.errors import Diverged
from distrec.core.status import reporting, share, stage
from distrec.data.dataset import Dataset, Part
from distrec.evaluation.collapse import collapse_warning
from distrec.evaluation.evaluator import Evaluated, evaluate_part
from distrec.models.base import EmbeddingConfig, Learner, SolverConfig
from distrec.sampling.batch import Batch
from distrec.sampling.stream import stream
from distrec.training.config import Config
from distrec.training.trainer import Trainer

_STEP_EVENT_S = 0.2  # interval between step events


@dataclass(frozen=True)
class Job:
    """What every worker does."""

    config: Config
    dataset: Dataset
    stream_backend: str
    """Where batches are drawn, `ray` or `thread`."""
    stream_actors: int = 1
    """Ray Data processes for each worker."""


class Host(Protocol):
    """Where the loop runs: what it starts from, and what happens to its events and checkpoints."""

    def restored(self) -> AbstractContextManager[str | Path | None]:
        """Return a context with the folder of the checkpoint to go on from; None to start."""

    def emit(self, event: dict[str, Any]) -> None:
        """Receive an event, a plain dict. All workers emit; those of rank 0 are the run's."""

    def keep(self, folder: Path, epoch: int, best: bool) -> None:
        """Keep the worker's part of a checkpoint, written to a temporary folder after this many epochs.

        The best checkpoint is kept until there is a better one.
        """

    def best(self, epoch: int) -> Path | None:
        """Return the folder of the best checkpoint, if it is of this epoch."""


def make_learner(config: Config, dataset: Dataset, device: torch.device) -> Learner:
    """Return the learner of one worker."""
    if isinstance(config.model, SolverConfig):
        return config.model.learner(dataset, config.run.seed, device)
    assert isinstance(config.model, EmbeddingConfig), config.model
    return Trainer(config, dataset, device)


class Loop:
    """Trains to the last epoch and evaluates, from where the host's checkpoint ended."""

    def __init__(self, job: Job, learner: Learner, host: Host) -> None:
        self.job, self.learner, self.host, self.config = job, learner, host, job.config
        self.history: list[dict[str, Any]] = []
        self.epoch_start = self.last_step_event = 0.0
        self._warned = False

    def run(self) -> dict[str, Any]:
        """Train and evaluate. Return the history of the epochs, test metrics and timings; rank 0's are the run's."""
        with reporting(self.host.emit):
            return self._run()

    def _run(self) -> dict[str, Any]:
        with self.host.restored() as folder:
            if folder is not None:
                stage("loading the checkpoint")
                self.history = self.learner.load(Path(folder))["history"]
                self._note(f"resumed after epoch {len(self.history)}")
        self._note(self.learner.describe())
        self.learner.observe(self._watched_values())
        first_batch_s = 0.0 if self._ends() else self._train_epochs()
        tested = self._load_best() or len(self.history)
        start = time.perf_counter()
        test = per_user = None
        if self.config.eval.test:
            self._note(f"evaluating epoch {tested} on the test part")
            test = self._evaluate(Part.TEST)
            # Once, by rank 0: the values of all users may be many.
            per_user = test.per_user if self.learner.exchange.rank == 0 else None
            test = replace(test, per_user=None)
        times = {"first_batch_s": first_batch_s, "eval_s": time.perf_counter() - start}
        return {"history": self.history, "test": test, "tested_epoch": tested, "per_user": per_user, **times}

    def _ends(self) -> bool:
        """Return whether training is over: after the last epoch, or `train.patience` evaluations without progress."""
        train, best = self.config.train, self._best()
        if best is None or not train.patience or len(self.history) >= self.config.epochs:
            return len(self.history) >= self.config.epochs
        since = [record for record in self.history[best:] if self._watched(record) is not None]
        return len(since) >= train.patience

    def _watched(self, record: dict[str, Any]) -> float | None:
        value: float | None = record.get("metrics", {}).get(self.config.watched)
        return value

    def _watched_values(self) -> list[float]:
        return [value for record in self.history if (value := self._watched(record)) is not None]

    def _best(self) -> int | None:
        """Return the epoch with the highest value of the watched metric, the first of several; None if none has it."""
        values = {r["epoch"]: value for r in self.history if (value := self._watched(r)) is not None}
        return max(values, key=values.__getitem__, default=None)

    def _load_best(self) -> int | None:
        """Load the rows of the best epoch, if it is not the last. Return the epoch; None if its rows are not kept."""
        best = self._best()
        if best is None or best == len(self.history):
            return best
        folder = self.host.best(best)
        if folder is None:
            self._note(f"the best epoch by {self.config.watched}, {best}, was not kept; going on with the last")
            return None
        self.learner.load(folder)
        return best

    def _train_epochs(self) -> float:
        """Run the remaining epochs. Return the seconds from starting the stream to its first batch."""
        start, batches = time.perf_counter(), self._batches()
        stage("waiting for the first batch")
        batches = chain([first], batches) if (first := next(batches, None)) else batches
        first_batch_s = time.perf_counter() - start  # the time of the first epoch excludes the start of the stream
        for epoch in range(len(self.history), self.config.epochs):
            self.epoch_start = time.perf_counter()
            stage("")
            loss_sum = self.learner.train_epoch(epoch, 0, batches, self._emit_step)
            self._end_epoch(epoch, time.perf_counter() - self.epoch_start, loss_sum)
            if self._ends():
                break
        if len(self.history) < self.config.epochs:
            self._note(
                f"stopping after epoch {len(self.history)}: {self.config.watched} was best after epoch {self._best()}"
            )
        return first_batch_s

    def _batches(self) -> Iterator[Batch]:
        source, train, job = self.learner.source, self.config.train, self.job
        if source is None:
            return iter(())
        first, ahead_mib = len(self.history), train.look_ahead_mib
        return stream(
            source, first, train.epochs, source.bytes_per_step, ahead_mib, job.stream_backend, job.stream_actors
        )

    def _evaluate(self, part: Part) -> Evaluated:
        config, is_test = self.config.eval, part == Part.TEST
        stage(f"evaluating on the {part.name.lower()} part")
        if not is_test:
            changes: dict[str, Any] = {"bootstrap": 0}
            if watched := self.config.watched:
                name, _, k = watched.partition("@")
                changes |= {"k": tuple(dict.fromkeys([*config.k, int(k)]))}
                changes |= {"metrics": tuple(dict.fromkeys([*config.metrics, name]))}
            config = config.model_copy(update=changes)
        scorer, exchange = self.learner.scorer, self.learner.exchange
        return evaluate_part(scorer, self.job.dataset, part, config, exchange, share, per_user=is_test)

    def _diagnose(self, found: Evaluated) -> dict[str, float]:
        """Return the diagnostics of an evaluation and of the last step; emit a note the first time that they show a
        collapse."""
        figures = dict(found.diagnostics) | self.learner.diagnostics()
        before = [record["diagnostics"] for record in self.history if record.get("diagnostics")]
        warning = collapse_warning(figures, before)
        if warning and not self._warned:
            self._warned = True
            self._note(f"warning: {warning}")
        return figures

    def _end_epoch(self, epoch: int, seconds: float, loss_sum: float) -> None:
        pairs, epochs = self.job.dataset.manifest.train, self.config.epochs
        loss = self.learner.exchange.all_sum([loss_sum])[0] / pairs
        if not math.isfinite(loss):
            raise Diverged(f"the loss of epoch {epoch + 1} is {loss}: lower optim.lr, or raise loss.temperature")
        record: dict[str, Any] = {"epoch": epoch + 1, "loss": loss, "seconds": seconds, "split": self.learner.timing()}
        last, every = epoch + 1 == epochs, self.config.eval.every
        if every and self.job.dataset.manifest.valid and ((epoch + 1) % every == 0 or last):
            start = time.perf_counter()
            found = self._evaluate(Part.VALID)
            record["metrics"], record["diagnostics"] = found.means(), self._diagnose(found)
            record["eval_s"] = time.perf_counter() - start
        self.history.append(record)
        self.learner.observe(self._watched_values())
        best = self._best() == epoch + 1
        if self._ends() or best or (epoch + 1) % self.config.train.checkpoint_every == 0:
            stage("writing a checkpoint")
            with tempfile.TemporaryDirectory() as folder:
                self.learner.save(Path(folder), {"history": self.history})
                self.host.keep(Path(folder), len(self.history), best)
        self.host.emit({"kind": "epoch", **record, "epochs": epochs, "interactions_per_s": pairs / seconds})

    def _emit_step(self, done: int, loss_sum: Tensor) -> None:
        """Emit the progress of an epoch at intervals; the loss is estimated from this worker's own pairs."""
        now, source = time.perf_counter(), self.learner.source
        if now - self.last_step_event < _STEP_EVENT_S or source is None:
            return
        self.last_step_event = now
        pairs, epochs = self.job.dataset.manifest.train * done / source.steps, self.config.epochs
        event = {"kind": "step", "epoch": len(self.history) + 1, "epochs": epochs, "step": done, "steps": source.steps}
        event["loss"] = loss_sum.item() * self.learner.exchange.workers / pairs
        self.host.emit({**event, "interactions_per_s": pairs / (now - self.epoch_start)})

    def _note(self, text: str) -> None:
        self.host.emit({"kind": "note", "text": text})
