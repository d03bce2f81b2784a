"""The driver of a run: prepares the data, starts Ray Train, records the events of the workers, writes the result."""

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from typing import Any

import ray
import ray.train
from ray.train.torch import TorchConfig, TorchTrainer

from distrec.core.background import in_background
from distrec.core.errors import UserError
from distrec.core.status import reporting, stage
from distrec.data.config import PLANTED
from distrec.data.dataset import Dataset
from distrec.data.prepare import prepare
from distrec.sampling.stream.ray_internal import forbid_reconnection
from distrec.tracking import open_tracker
from distrec.tracking.base import Tracker, epoch_figures
from distrec.training import cluster, connection
from distrec.training.checks import check_dataset, check_evaluation, check_workers
from distrec.training.config import Config
from distrec.training.loop import Job
from distrec.training.mailbox import Mailbox
from distrec.training.outcome import make_result
from distrec.training.run_folder import BEST, CHECKPOINTS, Result, RunFolder
from distrec.training.worker import run_worker

Event = dict[str, Any]
Listener = Callable[[Event], None]

_POLL_S, _SILENCE_S = 0.1, 30.0  # interval between looks for events; silence of the workers until a note says so
_STOP_S = 20.0  # limit for the workers of an interrupted run to end, before the run may be resumed


def train(config: Config, name: str = "distrec", on_event: Listener | None = None, verbose: bool = False) -> Result:
    """Train to the end of the last epoch, then evaluate on the test part.

    Uses the Ray that is initialized, or the cluster at RAY_ADDRESS, or starts Ray on this machine and stops it
    afterwards.

    Args:
        config: configuration of the run.
        name: names the run folder, runs/NAME, unless `run.dir` is set.
        on_event: called with plain dicts as training proceeds: kinds `note`, `step` and `epoch` in this thread, and
            `status`, what takes more than two seconds, in another.
        verbose: let Ray and the workers log to the terminal.

    Returns:
        The result, as written to the run folder.

    Raises:
        UserError: a mistake in the configuration or the data, or a training that diverged.
        WorkerLost: a worker died; the run can be resumed.
        KeyboardInterrupt: stopped by Ctrl-C or SIGTERM. Its argument is the run folder once the run can be resumed.
    """
    start, emit = time.perf_counter(), on_event or (lambda event: None)

    def note(text: str) -> None:
        emit({"kind": "note", "text": text})

    check_workers(config)
    check_evaluation(config)
    folder = RunFolder.choose(config, name)
    try:
        if config.run.resume and (finished := folder.finished(config)):
            note(f"{folder.path} is finished already")
            return finished
        with reporting(emit):
            return _train(config, folder, start, emit, note, verbose)
    finally:
        folder.release()


def _train(
    config: Config, folder: RunFolder, start: float, emit: Listener, note: connection.Note, verbose: bool
) -> Result:
    """Train in a folder that this process has locked; arguments as of `train`, `start` in seconds."""
    facts = folder.facts()
    tracker = open_tracker(config.tracking, folder.path, facts.get("mlflow_run"), note, facts.get("mlflow_uri"))
    note(f"run folder: {folder.path}")
    note(f"tracking: {tracker.destination}")
    stage("data: preparing")
    dataset = prepare(config.data, log=note)
    dataset = Dataset.open(dataset.path.absolute())  # workers run in another folder
    check_dataset(config, dataset)
    for text in config.eval.notes(dataset.manifest.items):
        note(text)
    folder.check_fingerprint(dataset.manifest.fingerprint)
    if config.data.source == PLANTED:
        note("data: synthetic; set data.source to train on your own")
    note(f"ray: {connection.describe_connection()}")
    stage("ray: starting")
    with connection.ray_running(config.train.workers, verbose, note):
        cluster.check_resources(config)
        cluster.check_memory(config, dataset, note)
        cluster.wait_for_resources(config, note)
        folder.prepare_resume(note)
        stage("tracking: opening the run")
        _open_run(tracker, config, dataset, folder)
        stage("train: starting the workers")
        workers = f"{config.train.workers} worker{'s' * (config.train.workers > 1)}"
        note(f"train: starting {workers} for {dataset.manifest.train:,} interactions an epoch (takes some 20 s)")
        with _finishing(tracker, folder):
            with stopped_by_sigterm():
                outcome = _fit(config, dataset, folder, lambda event: _record(event, tracker, emit))
            result = make_result(config, dataset, folder, outcome, time.perf_counter() - start)
            tracker.log_metrics(result.metrics, result.epochs)
            tracker.log_table([{"metric": key, "value": value} for key, value in result.metrics.items()])
            tracker.log_file(folder.finish(result))
    return result


@contextlib.contextmanager
def _finishing(tracker: Tracker, folder: RunFolder) -> Iterator[None]:
    """Close the tracker with the status of the body; add the run folder to a KeyboardInterrupt."""
    status = "FAILED"
    try:
        yield
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise KeyboardInterrupt(str(folder.path)) from None
    finally:
        tracker.finish(status)


@contextlib.contextmanager
def stopped_by_sigterm() -> Iterator[None]:
    """Raise KeyboardInterrupt on SIGTERM, as sent by Slurm and Docker. Replaces the handler that Ray installs."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    # Not by raising SIGINT, which is ignored where a script started the run in the background.
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _open_run(tracker: Tracker, config: Config, dataset: Dataset, folder: RunFolder) -> None:
    """Start the tracker and create or continue the run folder: the last steps that can fail before training."""
    facts, manifest = folder.facts(), dataset.manifest
    tracker.start(config, {"fingerprint": manifest.fingerprint, "folder": str(folder.path)}, folder.path.name)
    counts = manifest.model_dump(include={"users", "items", "buckets", "train", "valid", "test"})
    tracker.log_dataset(manifest.name, manifest.source, manifest.fingerprint, counts)
    facts |= {"fingerprint": manifest.fingerprint, "data": str(dataset.path)}
    try:
        folder.start(config, facts | {"mlflow_run": tracker.run_id, "mlflow_uri": tracker.uri})
    except UserError:
        tracker.finish("FAILED")
        raise


def _fit(config: Config, dataset: Dataset, folder: RunFolder, on_event: Listener) -> dict[str, Any]:
    """Run the workers and pass their events to `on_event` in this thread. Return the return value of rank 0."""
    mailbox: Any = ray.remote(num_cpus=0)(Mailbox).remote()
    manifest = dataset.manifest
    job = Job(config, dataset, *cluster.stream_plan(config, manifest.users, manifest.items))
    trainer = _ray_trainer(config, folder, {"job": job, "mailbox": mailbox, "best_folder": folder.path / BEST})
    # In a thread, so that this one can pass on events, and that Ctrl-C raises here, not in Ray's signal handler.
    fit: Future[Any] = in_background(trainer.fit, "fit")
    started, last = False, time.monotonic()
    try:
        while not wait([fit], _POLL_S).done:
            for event in ray.get(mailbox.take.remote()):
                started, last = True, time.monotonic()
                stage("")  # from now on the workers report
                on_event(event)
            if time.monotonic() - last >= _SILENCE_S:
                last = time.monotonic()
                text = "nothing from the workers for half a minute" if started else cluster.describe_start()
                on_event({"kind": "note", "text": f"train: {text}"})
    except KeyboardInterrupt:
        on_event({"kind": "note", "text": "stopping"})
        raise
    finally:
        ray.kill(mailbox)  # the workers of an interrupted run fail at their next event, and end
        if not wait([fit], _STOP_S).done:
            forbid_reconnection()
    try:
        value: dict[str, Any] = fit.result().return_value
    except Exception as error:
        raise cluster.root_cause(error, str(folder.path)) from None
    return value


def _ray_trainer(config: Config, folder: RunFolder, arguments: dict[str, Any]) -> TorchTrainer:
    return TorchTrainer(
        run_worker,  # type: ignore[arg-type]  # typed to return nothing; Ray passes the value on
        train_loop_config=arguments,
        torch_config=TorchConfig(backend="nccl" if cluster.uses_gpus(config) else "gloo"),
        scaling_config=ray.train.ScalingConfig(**cluster.scaling(config)),
        run_config=ray.train.RunConfig(
            # A second `fit` with the same name and path continues from the last checkpoint: this resumes a run.
            name=CHECKPOINTS,
            storage_path=str(folder.path),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=2),
        ),
    )


def _record(event: Event, tracker: Tracker, emit: Listener) -> None:
    """Log the figures of an epoch to the tracker, and emit the event."""
    if event["kind"] == "epoch":
        figures = epoch_figures(event) | {"train/interactions_per_s": event["interactions_per_s"]}
        figures |= {f"time/{part}_s": seconds for part, seconds in event["split"].items()}
        figures |= {f"diagnostics/{key}": value for key, value in event.get("diagnostics", {}).items()}
        tracker.log_metrics(figures, event["epoch"])
    emit(event)
