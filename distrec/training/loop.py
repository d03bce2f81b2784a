"""What runs in each Ray Train worker: the loop over epochs, fed by the stream, with checkpoints at epoch ends."""

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

from distrec.core.errors import UserError
from distrec.data.dataset import Dataset, Part
from distrec.sampling.stream.ray import stream
from distrec.training.config import Config
from distrec.training.trainer import Trainer

_EVENT_S = 0.2  # a terminal needs no more


@dataclass(frozen=True)
class Job:
    """What the driver hands to every worker."""

    config: Config
    dataset: Dataset
    stream: str
    """Who draws the batches, `ray` or `thread`."""
    stream_actors: int
    """Processes of Ray Data that draw for each worker."""
    mailbox: ActorHandle
    """Takes events (plain dicts) for whoever shows or records them."""


def work(job: Job) -> dict[str, Any]:
    """Trains and evaluates. Returns the history of the epochs, metrics and timings; rank 0's are the run's."""
    context = ray.train.get_context()
    pa.set_memory_pool(pa.system_memory_pool())  # Arrow's own keeps 20 MiB of what reading the data took
    torch.set_num_threads(job.config.train.threads or max(1, (os.cpu_count() or 1) // context.get_local_world_size()))
    return _Loop(
        job, Trainer(job.config, job.dataset, ray.train.torch.get_device()), context.get_world_rank() == 0
    ).run()


class _Loop:
    def __init__(self, job: Job, trainer: Trainer, leads: bool) -> None:
        self.job, self.trainer, self.config = job, trainer, job.config
        self.leads = leads
        self.history: list[dict[str, Any]] = []
        self.told = 0.0
        self.sent: ray.ObjectRef | None = None

    def run(self) -> dict[str, Any]:
        checkpoint = ray.train.get_checkpoint()
        if checkpoint is not None:
            with checkpoint.as_directory() as folder:
                self.history = self.trainer.load(Path(folder))["history"]
            self._tell({"kind": "note", "text": f"resumed after epoch {len(self.history)}"})
        self._tell({"kind": "note", "text": f"optimizer: {self.trainer.idle_rows}"})
        if self.trainer.exchange.workers > 1:
            self._tell({"kind": "note", "text": f"exchange: rows travel through {self.trainer.exchange.by}"})
        first_batch_s = self._train_epochs() if len(self.history) < self.config.train.epochs else 0.0
        start = time.perf_counter()
        self._tell({"kind": "note", "text": "evaluating on the test part"})
        test = self.trainer.evaluate(Part.TEST)
        eval_s = time.perf_counter() - start
        return {"history": self.history, "test": test, "first_batch_s": first_batch_s, "eval_s": eval_s}

    def _train_epochs(self) -> float:
        """Runs the epochs that are left. Returns the seconds until the first batch came."""
        start, source = time.perf_counter(), self.trainer.source
        train = self.config.train
        batches = stream(
            source,
            len(self.history),
            train.epochs,
            source.bytes_per_step,
            train.look_ahead_mib,
            self.job.stream,
            self.job.stream_actors,
        )
        ahead = next(batches)  # starting the stream belongs to no epoch
        first_batch_s = time.perf_counter() - start
        for epoch in range(len(self.history), self.config.train.epochs):
            start, loss_sum = time.perf_counter(), torch.zeros((), dtype=torch.float64, device=self.trainer.device)
            for step in range(source.steps):
                batch = ahead
                assert (batch.epoch, batch.step) == (epoch, step), (batch.epoch, batch.step, epoch, step)
                with self.trainer.meters.part("wait"):
                    ahead = next(batches, None)
                loss_sum += self.trainer.step(batch, ahead)
                self._tell_step(epoch, step, start, loss_sum)
            loss = loss_sum.item()  # with it the device has done all steps
            self._end_epoch(epoch, time.perf_counter() - start, loss)
        return first_batch_s

    def _end_epoch(self, epoch: int, seconds: float, loss_sum: float) -> None:
        pairs = self.job.dataset.manifest.train
        loss = self.trainer.exchange.all_sum([loss_sum])[0] / pairs
        if not math.isfinite(loss):
            raise UserError(f"the loss of epoch {epoch + 1} is {loss}: lower optim.lr, or raise loss.temperature")
        split = self.trainer.meters.snapshot()
        self.trainer.meters.reset()
        record: dict[str, Any] = {"epoch": epoch + 1, "loss": loss, "seconds": seconds, "split": split}
        last = epoch + 1 == self.config.train.epochs
        every = self.config.eval.every
        if every and self.job.dataset.manifest.valid and ((epoch + 1) % every == 0 or last):
            start = time.perf_counter()
            record["metrics"] = self.trainer.evaluate(Part.VALID).means()
            record["eval_s"] = time.perf_counter() - start
        self.history.append(record)
        if last or (epoch + 1) % self.config.train.checkpoint_every == 0:
            self._checkpoint()
        self._tell(
            {"kind": "epoch", **record, "epochs": self.config.train.epochs, "interactions_per_s": pairs / seconds}
        )

    def _checkpoint(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            self.trainer.save(Path(folder), {"history": self.history})
            ray.train.report({"epoch": len(self.history)}, checkpoint=ray.train.Checkpoint.from_directory(folder))

    def _tell_step(self, epoch: int, step: int, start: float, loss_sum: torch.Tensor) -> None:
        """An estimate from this worker's own pairs, now and then."""
        now = time.perf_counter()
        if not self.leads or now - self.told < _EVENT_S:
            return
        self.told = now
        done, steps = step + 1, self.trainer.source.steps
        pairs = self.job.dataset.manifest.train * done / steps
        self._tell(
            {
                "kind": "step",
                "epoch": epoch + 1,
                "epochs": self.config.train.epochs,
                "step": done,
                "steps": steps,
                "loss": loss_sum.item() * self.trainer.exchange.workers / pairs,
                "interactions_per_s": pairs / (now - start),
            }
        )

    def _tell(self, event: dict[str, Any]) -> None:
        """Sends an event without waiting for it. Raises, and so ends the run, if the driver is no longer listening."""
        if not self.leads:
            return
        if self.sent is not None and ray.wait([self.sent], timeout=0)[0]:
            ray.get(self.sent)
        self.sent = self.job.mailbox.put.remote(event)
