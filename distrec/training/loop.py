"""The function that each Ray Train worker runs: the loop over epochs, with its stream, evaluations and checkpoints.

A resumed run starts here from the last checkpoint that Ray Train hands to the worker.
"""

import math
import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray
import ray.train
import ray.train.torch
import torch
from ray.actor import ActorHandle
from torch import Tensor

from distrec.core.errors import UserError
from distrec.data.dataset import Dataset, Part
from distrec.sampling.stream import stream
from distrec.training.config import Config
from distrec.training.trainer import Trainer

_STEP_EVENT_S = 0.2  # interval between step events


@dataclass(frozen=True)
class Job:
    """Arguments of every worker."""

    config: Config
    dataset: Dataset
    stream_backend: str
    """Where batches are drawn, `ray` or `thread`."""
    stream_actors: int
    """Ray Data processes for each worker."""
    mailbox: ActorHandle[Any]
    """`Mailbox` that receives the events of rank 0, plain dicts."""


def run_worker(job: Job) -> dict[str, Any]:
    """Train and evaluate. Return the history of the epochs, test metrics and timings; rank 0's are the run's."""
    context = ray.train.get_context()
    pa.set_memory_pool(pa.system_memory_pool())  # Arrow's default pool keeps 20 MiB after the data are read
    torch.set_num_threads(job.config.train.threads or max(1, (os.cpu_count() or 1) // context.get_local_world_size()))
    trainer = Trainer(job.config, job.dataset, ray.train.torch.get_device())
    return _Loop(job, trainer, context.get_world_rank() == 0).run()


class _Loop:
    def __init__(self, job: Job, trainer: Trainer, emits: bool) -> None:
        self.job, self.trainer, self.config = job, trainer, job.config
        self.emits = emits
        self.history: list[dict[str, Any]] = []
        self.last_step_event = 0.0
        self.last_event: ray.ObjectRef[None] | None = None

    def run(self) -> dict[str, Any]:
        checkpoint = ray.train.get_checkpoint()
        if checkpoint is not None:
            with checkpoint.as_directory() as folder:
                self.history = self.trainer.load(Path(folder))["history"]
            self._note(f"resumed after epoch {len(self.history)}")
        self._note(f"optimizer: {self.trainer.idle_rows}")
        if self.trainer.exchange.workers > 1:
            self._note(f"exchange: rows travel through {self.trainer.exchange.transport}")
        first_batch_s = self._train_epochs() if len(self.history) < self.config.train.epochs else 0.0
        start = time.perf_counter()
        self._note("evaluating on the test part")
        test = self.trainer.evaluate(Part.TEST)
        eval_s = time.perf_counter() - start
        return {"history": self.history, "test": test, "first_batch_s": first_batch_s, "eval_s": eval_s}

    def _train_epochs(self) -> float:
        """Run the remaining epochs. Return the seconds from starting the stream to its first batch."""
        start, source, train, job = time.perf_counter(), self.trainer.source, self.config.train, self.job
        first, ahead_mib = len(self.history), train.look_ahead_mib
        batches = stream(
            source, first, train.epochs, source.bytes_per_step, ahead_mib, job.stream_backend, job.stream_actors
        )
        following = next(batches, None)  # before the first epoch, whose time excludes the start of the stream
        first_batch_s = time.perf_counter() - start
        for epoch in range(first, train.epochs):
            start, loss_sum = time.perf_counter(), torch.zeros((), dtype=torch.float64, device=self.trainer.device)
            for step in range(source.steps):
                batch = following
                assert batch is not None and (batch.epoch, batch.step) == (epoch, step), (batch, epoch, step)
                with self.trainer.meters.part("wait"):
                    following = next(batches, None)
                loss_sum += self.trainer.step(batch, following)
                self._emit_step(epoch, step, start, loss_sum)
            loss = loss_sum.item()  # synchronises: all steps are done when the clock is read
            self._end_epoch(epoch, time.perf_counter() - start, loss)
        return first_batch_s

    def _end_epoch(self, epoch: int, seconds: float, loss_sum: float) -> None:
        pairs, epochs = self.job.dataset.manifest.train, self.config.train.epochs
        loss = self.trainer.exchange.all_sum([loss_sum])[0] / pairs
        if not math.isfinite(loss):
            raise UserError(f"the loss of epoch {epoch + 1} is {loss}: lower optim.lr, or raise loss.temperature")
        split = self.trainer.meters.snapshot()
        self.trainer.meters.reset()
        record: dict[str, Any] = {"epoch": epoch + 1, "loss": loss, "seconds": seconds, "split": split}
        last, every = epoch + 1 == epochs, self.config.eval.every
        if every and self.job.dataset.manifest.valid and ((epoch + 1) % every == 0 or last):
            start = time.perf_counter()
            record["metrics"] = self.trainer.evaluate(Part.VALID).means()
            record["eval_s"] = time.perf_counter() - start
        self.history.append(record)
        if last or (epoch + 1) % self.config.train.checkpoint_every == 0:
            self._checkpoint()
        self._emit({"kind": "epoch", **record, "epochs": epochs, "interactions_per_s": pairs / seconds})

    def _checkpoint(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            self.trainer.save(Path(folder), {"history": self.history})
            ray.train.report({"epoch": len(self.history)}, checkpoint=ray.train.Checkpoint.from_directory(folder))

    def _emit_step(self, epoch: int, step: int, start: float, loss_sum: Tensor) -> None:
        """Emit the progress of an epoch at intervals; the loss is estimated from this worker's own pairs."""
        now = time.perf_counter()
        if not self.emits or now - self.last_step_event < _STEP_EVENT_S:
            return
        self.last_step_event = now
        done, steps = step + 1, self.trainer.source.steps
        pairs = self.job.dataset.manifest.train * done / steps
        event = {"kind": "step", "epoch": epoch + 1, "epochs": self.config.train.epochs, "step": done, "steps": steps}
        event["loss"] = loss_sum.item() * self.trainer.exchange.workers / pairs
        self._emit({**event, "interactions_per_s": pairs / (now - start)})

    def _note(self, text: str) -> None:
        self._emit({"kind": "note", "text": text})

    def _emit(self, event: dict[str, Any]) -> None:
        """Send an event without waiting for it. Raise if the mailbox is gone, which ends the worker."""
        if not self.emits:
            return
        if self.last_event is not None and ray.wait([self.last_event], timeout=0)[0]:
            ray.get(self.last_event)
        self.last_event = self.job.mailbox.put.remote(event)
