"""The function that each Ray Train worker runs."""

import os
import shutil
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import ray
import ray.train
import ray.train.torch
import torch
from ray.actor import ActorHandle

from distrec.core.registry import import_modules
from distrec.sharding.checkpoint import is_complete, unwritable
from distrec.training.loop import Job, Loop, make_learner
from distrec.training.run_folder import best_name


def run_worker(arguments: dict[str, Any]) -> dict[str, Any]:
    """Run the loop. A resumed run goes on from the last checkpoint that Ray Train hands to the worker.

    Args:
        arguments: the `Job`, the `Mailbox` that receives the events of rank 0, and the folder of the best checkpoint,
            which every worker can write.
    """
    job, context = cast(Job, arguments["job"]), ray.train.get_context()
    import_modules(job.config.run.imports)
    pa.set_memory_pool(pa.system_memory_pool())  # Arrow's default pool keeps 20 MiB after the data are read
    torch.set_num_threads(job.config.train.threads or max(1, (os.cpu_count() or 1) // context.get_local_world_size()))
    learner = make_learner(job.config, job.dataset, ray.train.torch.get_device())
    mailbox = arguments["mailbox"] if context.get_world_rank() == 0 else None
    return Loop(job, learner, _RayHost(mailbox, arguments["best_folder"])).run()


class _RayHost:
    """Implements `Host` by Ray Train. Events of rank 0 go to the mailbox; the other ranks have none."""

    def __init__(self, mailbox: ActorHandle[Any] | None, best_folder: Path) -> None:
        self._mailbox, self._best_folder = mailbox, best_folder
        self._last_event: ray.ObjectRef[None] | None = None

    def restored(self) -> AbstractContextManager[str | Path | None]:
        checkpoint = ray.train.get_checkpoint()
        return nullcontext() if checkpoint is None else checkpoint.as_directory()

    def keep(self, folder: Path, epoch: int, best: bool) -> None:
        kept = self._best_folder / best_name(epoch)
        if best:
            try:
                shutil.copytree(folder, kept, dirs_exist_ok=True)
            except OSError as error:
                raise unwritable(kept, error) from None
        ray.train.report({"epoch": epoch}, checkpoint=ray.train.Checkpoint.from_directory(str(folder)))
        if best and self._mailbox is not None:  # all workers have written their part, as they have reported
            for old in self._best_folder.glob("epoch_*"):
                if old != kept:
                    shutil.rmtree(old, ignore_errors=True)

    def best(self, epoch: int) -> Path | None:
        folder = self._best_folder / best_name(epoch)
        return folder if is_complete(folder) else None

    def emit(self, event: dict[str, Any]) -> None:
        """Send an event without waiting for it. Raise if the mailbox is gone, which ends the worker."""
        if self._mailbox is None:
            return
        if self._last_event is not None and ray.wait([self._last_event], timeout=0)[0]:
            ray.get(self._last_event)
        self._last_event = self._mailbox.put.remote(event)
