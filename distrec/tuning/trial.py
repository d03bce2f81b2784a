"""One training of a search or study: in this process and without Ray, or by Ray Train if it has several workers."""

import shutil
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch

from distrec.core.errors import UserError
from distrec.data.dataset import Dataset
from distrec.data.prepare import prepare
from distrec.sharding.checkpoint import is_complete, read_meta, unwritable
from distrec.training.checks import check_dataset
from distrec.training.config import Config
from distrec.training.loop import Job, Loop, make_learner
from distrec.training.outcome import make_result
from distrec.training.run_folder import BEST, CHECKPOINTS, FolderInUse, Result, RunFolder, best_name

Event = dict[str, Any]
OnEpoch = Callable[[Event], bool | None]
"""Called with the `epoch` event of each epoch, those before a resume included; True stops the training."""

_KEPT = 2  # checkpoints
_LOCK_S = 30.0  # a process whose driver was killed has its folder for some seconds more


class Stopped(Exception):
    """Raised in a training when its callback has stopped it."""


def run_trial(config: Config, on_epoch: OnEpoch | None = None, dataset: Dataset | None = None) -> Result:
    """Train a configuration to its end, or on from its last checkpoint if its run folder holds a run.

    One worker is this process, with a thread that draws its batches; several are started by Ray Train. The weights are
    the same. Nothing is recorded to MLflow but by Ray Train.

    Args:
        config: configuration; `run.dir` must be set, and is resumed whatever `run.resume` is.
        on_epoch: see `OnEpoch`.
        dataset: the prepared data, if they are open.

    Returns:
        The result, as written to the run folder. Without the metrics of the test part if `eval.test` is false or the
        training was stopped by its callback; a stopped one is not written, and goes on if it is called again.

    Raises:
        UserError: a mistake in the configuration or the data, or a training that diverged.
        WorkerLost: a worker of Ray Train died.
    """
    assert config.run.dir is not None, "run.dir"
    path, on_epoch = config.run.dir, on_epoch or (lambda event: None)
    resume = RunFolder(path).config_file.exists()
    config = config.changed(run={"resume": resume})
    history = past_epochs(RunFolder(path), config) if resume else []
    for event in history:
        on_epoch(event)  # what it returns was applied before the resume
    if config.train.workers > 1:
        return _run_workers(config, on_epoch, history)
    folder = _choose(config)
    try:
        if resume and (finished := folder.finished(config)):
            return finished
        return _run_here(config, folder, on_epoch, dataset or prepare(config.data))
    finally:
        folder.release()


def past_epochs(folder: RunFolder, config: Config) -> list[Event]:
    """Return the `epoch` event of each epoch up to the last checkpoint."""
    try:
        history = read_meta(folder.last_checkpoint(lambda text: None))["history"]
    except UserError:  # it has none
        return []
    return [{"kind": "epoch", "epochs": config.epochs, **record} for record in history]


def _choose(config: Config) -> RunFolder:
    """Choose and lock the run folder, waiting for a process of a killed search to end."""
    started = time.monotonic()
    while True:
        try:
            return RunFolder.choose(config, "trial")
        except FolderInUse:
            if time.monotonic() - started > _LOCK_S:
                raise
            time.sleep(0.5)


def _run_workers(config: Config, on_epoch: OnEpoch, history: list[Event]) -> Result:
    """Train by Ray Train, on from the epochs of `history`."""
    from distrec.training.driver import train  # here: one worker does without Ray

    assert config.run.dir is not None
    folder, start = RunFolder(config.run.dir), time.perf_counter()

    def listen(event: Event) -> None:
        if event["kind"] == "epoch":
            history.append(event)
            if on_epoch(event):
                raise Stopped

    try:
        return train(config, on_event=listen)
    except Stopped:
        return _stopped(config, Dataset.open(Path(folder.facts()["data"])), folder, history, start)


def _run_here(config: Config, folder: RunFolder, on_epoch: OnEpoch, dataset: Dataset) -> Result:
    start = time.perf_counter()
    dataset = Dataset.open(dataset.path.absolute())
    check_dataset(config, dataset)
    folder.check_fingerprint(dataset.manifest.fingerprint)
    folder.prepare_resume(lambda text: None)
    folder.start(config, {"fingerprint": dataset.manifest.fingerprint, "data": str(dataset.path)})
    if config.train.threads:
        torch.set_num_threads(config.train.threads)
    cuda = config.train.device != "cpu" and torch.cuda.is_available()
    if config.train.device == "cuda" and not cuda:
        raise UserError("train.device=cuda: this process has no GPU")
    learner = make_learner(config, dataset, torch.device("cuda" if cuda else "cpu"))
    loop = Loop(Job(config, dataset, "thread"), learner, _FolderHost(folder, on_epoch))
    try:
        outcome = loop.run()
    except Stopped:
        return _stopped(config, dataset, folder, loop.history, start)
    result = make_result(config, dataset, folder, outcome, time.perf_counter() - start)
    folder.finish(result)
    return result


def _stopped(config: Config, dataset: Dataset, folder: RunFolder, history: list[Event], start: float) -> Result:
    """Return the result of a training that its callback has stopped."""
    outcome: Event = {"history": history, "test": None, "tested_epoch": len(history), "per_user": None}
    outcome |= {"first_batch_s": 0.0, "eval_s": 0.0}
    return make_result(config, dataset, folder, outcome, time.perf_counter() - start)


class _FolderHost:
    """Implements `Host` by the run folder, with checkpoints as Ray Train keeps them."""

    def __init__(self, folder: RunFolder, on_epoch: OnEpoch) -> None:
        self._folder, self._on_epoch = folder, on_epoch

    def restored(self) -> AbstractContextManager[str | Path | None]:
        try:
            return nullcontext(self._folder.last_checkpoint(lambda text: None))
        except UserError:  # there is none
            return nullcontext()

    def emit(self, event: Event) -> None:
        if event["kind"] == "epoch" and self._on_epoch(event):
            raise Stopped

    def keep(self, folder: Path, epoch: int, best: bool) -> None:
        checkpoints, kept = self._folder.path / CHECKPOINTS, self._folder.path / BEST
        _copy(folder, checkpoints / f"checkpoint_{epoch:06d}")
        _keep_last(checkpoints, "checkpoint_*", _KEPT)
        if best:
            _copy(folder, kept / best_name(epoch))
            _keep_last(kept, "epoch_*", 1)

    def best(self, epoch: int) -> Path | None:
        folder = self._folder.path / BEST / best_name(epoch)
        return folder if is_complete(folder) else None


def _copy(source: Path, target: Path) -> None:
    """Copy a folder, to where it is complete or absent."""
    partial = target.with_name(f".{target.name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(source, partial)
        shutil.rmtree(target, ignore_errors=True)
        partial.rename(target)
    except OSError as error:
        raise unwritable(target, error) from None


def _keep_last(folder: Path, pattern: str, count: int) -> None:
    for old in sorted(folder.glob(pattern))[:-count]:
        shutil.rmtree(old, ignore_errors=True)
