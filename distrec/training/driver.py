"""From a configuration to a result: prepares the data, runs the workers on Ray, records what they tell."""

import contextlib
import logging
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import ray
import ray.data
import ray.train
from ray.train.torch import TorchConfig, TorchTrainer

from distrec.core.config import flat
from distrec.core.errors import UserError, WorkerLost
from distrec.data.config import PLANTED
from distrec.data.dataset import MANIFEST, Dataset, Part
from distrec.data.prepare import prepare
from distrec.sampling.stream.ray import STREAM_CPUS
from distrec.tracking import open_tracker
from distrec.tracking.base import Tracker
from distrec.tracking.environment import versions
from distrec.training.config import Config
from distrec.training.loop import Job, work
from distrec.training.mailbox import Mailbox
from distrec.training.run_folder import CHECKPOINTS, Result, RunFolder, Timing

Event = dict[str, Any]
Listener = Callable[[Event], None]

_POLL_S = 0.1
_STOP_S = 20.0  # for the workers of an interrupted run to end, before somebody resumes it
_WORKER_CPUS = 1.0
_LOST = (  # what tells of a worker, or of the stream beside it, that has ended
    ray.exceptions.RayActorError,
    ray.exceptions.OutOfMemoryError,
    ray.exceptions.NodeDiedError,
    ray.exceptions.WorkerCrashedError,
    ConnectionError,
)
_GPU_ACTORS = 8  # of a stream that feeds a GPU, where the cluster has the cores
_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # relative paths mean the user's folder
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # a checkpoint waits for the controller's next look
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # an actor whose start takes 3 s of a core, for what nobody here reads
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


def train(config: Config, name: str = "distrec", on_event: Listener | None = None, verbose: bool = False) -> Result:
    """Trains to the end of the last epoch and evaluates on the test part.

    Uses the Ray that is running, or the cluster at RAY_ADDRESS, or starts one on this machine and stops it afterwards.

    Args:
        config: the whole configuration.
        name: names the run folder where `run.dir` does not.
        on_event: is called with plain dicts as the training goes on (kinds `note`, `step` and `epoch`), in this thread.
        verbose: let Ray and the workers write to the terminal.

    Returns:
        The result, as written to the run folder.

    Raises:
        UserError: a mistake in the configuration or the data, or a training that diverged.
        WorkerLost: a worker was killed; the run can be resumed.
        KeyboardInterrupt: stopped by Ctrl-C. Once there is a run that can be resumed, it carries the run folder.
    """
    start, tell = time.perf_counter(), on_event or (lambda event: None)

    def note(text: str) -> None:
        tell({"kind": "note", "text": text})

    _check_workers(config.train.workers, config.data.buckets if _raw(config) else None)
    folder = RunFolder.choose(config, name)
    if config.run.resume and (done := folder.result()):
        note(f"{folder.path} has ended already")
        return done
    dataset = prepare(config.data, log=note)
    dataset = Dataset.open(dataset.path.absolute())  # workers stand in another folder
    _check_data(config, dataset, folder)
    if config.data.source == PLANTED:
        note("data: these are made; set data.source to train on yours")
    note(f"ray: {_where()}")
    with ray_running(config.train.workers, verbose):
        _check_cluster(config)
        tracker = _open_run(config, dataset, folder, note)
        workers = f"{config.train.workers} worker{'s' * (config.train.workers > 1)}"
        note(f"train: starting {workers} for {dataset.manifest.train:,} interactions an epoch (takes some 20 s)")
        status = "FAILED"
        try:
            with _sigterm_as_ctrl_c():
                outcome = _fit(config, dataset, folder, lambda event: _record(event, tracker, tell))
            result = _result(config, dataset, folder, outcome, time.perf_counter() - start)
            tracker.log_metrics(result.metrics, config.train.epochs)
            tracker.log_table([{"metric": key, "value": value} for key, value in result.metrics.items()])
            tracker.log_file(folder.finish(result))
            status = "FINISHED"
        except KeyboardInterrupt:
            status = "KILLED"
            raise KeyboardInterrupt(str(folder.path)) from None
        finally:
            tracker.finish(status)
    return result


@contextlib.contextmanager
def _sigterm_as_ctrl_c() -> Iterator[None]:
    """A scheduler's polite end (Slurm, Docker) is a Ctrl-C. Ray has put a handler of its own there by now."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda number, frame: signal.raise_signal(signal.SIGINT))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _open_run(config: Config, dataset: Dataset, folder: RunFolder, note: Callable[[str], None]) -> Tracker:
    """Opens the run in MLflow and makes, or takes up, the run folder: the last that can go wrong before training."""
    facts, m = folder.facts(), dataset.manifest
    tracker = open_tracker(config.tracking, folder.path, facts.get("mlflow_run"), note)
    tracker.start(flat(config), {"fingerprint": m.fingerprint, "folder": str(folder.path)}, folder.path.name)
    counts = m.model_dump(include={"users", "items", "buckets", "train", "valid", "test"})
    tracker.log_dataset(m.name, m.source, m.fingerprint, counts)
    facts |= {"fingerprint": m.fingerprint, "data": str(dataset.path)}
    try:
        folder.start(config, facts | {"mlflow_run": tracker.run_id, "mlflow_uri": getattr(tracker, "uri", None)})
    except UserError:
        tracker.finish("FAILED")
        raise
    return tracker


def _check_data(config: Config, dataset: Dataset, folder: RunFolder) -> None:
    m = dataset.manifest
    if not m.test:
        raise UserError(f"{config.data.source} has no test part: {_why_no_test(config, dataset)}")
    if not m.train:
        raise UserError(f"{config.data.source} has no training interactions")
    _check_workers(config.train.workers, m.buckets)
    folder.check_fingerprint(m.fingerprint)
    for part in (Part.VALID, Part.TEST):
        if m.count(part) and not _any_rankable(dataset, part):
            raise UserError(
                f"{config.data.source}: no user has both training interactions and a {part.name.lower()} part; "
                "check how it was split"
            )


def _why_no_test(config: Config, dataset: Dataset) -> str:
    if dataset.manifest.overlap:
        return f"all of its interactions ({dataset.manifest.overlap:,}) are training interactions too"
    if config.data.test_fraction:
        return f"data.test_fraction={config.data.test_fraction:g} held nothing out; users have too few interactions"
    return "hold out a share of each user's interactions with data.test_fraction=0.2, or name a file in data.test"


def _any_rankable(dataset: Dataset, part: Part) -> bool:
    """Whether some user has interactions both to train on and in `part`. Mostly the first bucket answers."""
    buckets = range(dataset.manifest.buckets)
    return any(
        np.isin(dataset.interactions(part, [p])[0], dataset.interactions(Part.TRAIN, [p])[0]).any() for p in buckets
    )


def _raw(config: Config) -> bool:
    """Whether the data are still to be prepared, into as many buckets as the configuration says."""
    return not (Path(config.data.source) / MANIFEST).exists()


def _check_workers(workers: int, buckets: int | None) -> None:
    if buckets is not None and workers > buckets:
        raise UserError(
            f"train.workers={workers} is more than the data's {buckets} buckets: a worker would own nothing; "
            "use fewer workers, or prepare with more data.buckets"
        )


@contextlib.contextmanager
def ray_running(workers: int, verbose: bool = False) -> Iterator[None]:
    """Ray with room for `workers`, quiet unless `verbose`; stopped afterwards if it was started here."""
    for key, value in _ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    level = logging.INFO if verbose else logging.ERROR
    for logger in ("ray", "ray.data", "ray.train"):
        logging.getLogger(logger).setLevel(level)
    started = not ray.is_initialized()
    if started:
        _start_ray(workers, verbose)
    try:
        yield
    finally:
        if started:
            ray.shutdown()


def _start_ray(workers: int, verbose: bool) -> None:
    """Connects to the cluster at RAY_ADDRESS, or starts Ray on this machine."""
    quiet = {"logging_level": logging.INFO if verbose else logging.ERROR, "log_to_driver": verbose}
    address = os.environ.get("RAY_ADDRESS")
    if not address:
        # On one machine the numbers are only Ray's bookkeeping: never let a stream wait for a worker's CPU.
        logical = max(os.cpu_count() or 1, math.ceil(workers * (_WORKER_CPUS + STREAM_CPUS)))
        ray.init("local", num_cpus=logical, include_dashboard=False, **quiet)
        return
    try:
        ray.init(**quiet)
    except (ConnectionError, ray.exceptions.RayError) as error:
        raise UserError(
            f"cannot reach the Ray cluster at RAY_ADDRESS={address}: {error}\n"
            "Is it running? If it asks for a token, set RAY_AUTH_MODE=token too."
        ) from None


def _where() -> str:
    """What `ray_running` is about to use, for a note."""
    if ray.is_initialized():
        return "using the one that is running"
    address = os.environ.get("RAY_ADDRESS")
    return f"connecting to {address}" if address else "starting on this machine"


def _check_cluster(config: Config) -> None:
    """Refuses what would otherwise wait for ever."""
    has, workers = ray.cluster_resources(), config.train.workers
    needed = workers * (_WORKER_CPUS + STREAM_CPUS)
    if has.get("CPU", 0) < needed:
        raise UserError(
            f"train.workers={workers} needs {needed:g} CPUs ({_WORKER_CPUS:g} a worker, {STREAM_CPUS:g} its stream); "
            f"the Ray cluster has {has.get('CPU', 0):g}"
        )
    if config.train.device == "cuda" and has.get("GPU", 0) < workers:
        raise UserError(
            f"train.device=cuda needs a GPU for each of {workers} workers; the Ray cluster has {has.get('GPU', 0):g}"
        )


def _streaming(config: Config, gpu: bool) -> tuple[str, int]:
    """Who draws the batches, and with Ray Data how many actors for each worker.

    A GPU takes a step in less than a fifth of the time that one core needs to draw 800 negatives a pair.
    """
    if not gpu:
        return config.streamed_by, config.train.stream_actors or 1
    cores = int(ray.cluster_resources()["CPU"] / config.train.workers - _WORKER_CPUS)
    by = "ray" if config.train.stream == "auto" else config.train.stream
    return by, config.train.stream_actors or max(1, min(_GPU_ACTORS, cores))


def _fit(config: Config, dataset: Dataset, folder: RunFolder, on_event: Listener) -> dict[str, Any]:
    """Runs the workers; hands their events to `on_event` in this thread. Returns what rank 0 returned."""
    gpu = config.train.device != "cpu" and ray.cluster_resources().get("GPU", 0) >= config.train.workers
    mailbox = ray.remote(num_cpus=0)(Mailbox).remote()
    trainer = TorchTrainer(
        work,
        train_loop_config=Job(config, dataset, *_streaming(config, gpu), mailbox),
        torch_config=TorchConfig(backend="nccl" if gpu else "gloo"),
        scaling_config=ray.train.ScalingConfig(
            num_workers=config.train.workers,
            use_gpu=gpu,
            # Ray would fill one node first; workers on the CPU want the cores and the memory of all of them.
            placement_strategy="PACK" if gpu else "SPREAD",
            resources_per_worker={"CPU": _WORKER_CPUS} | ({"GPU": 1} if gpu else {}),
        ),
        run_config=ray.train.RunConfig(
            # A second fit under the same name and path goes on from the last checkpoint: that is how a run resumes.
            name=CHECKPOINTS,
            storage_path=str(folder.path),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=2),
        ),
    )
    box: dict[str, Any] = {}
    # In a thread of its own: this one passes events on, and Ctrl-C reaches us, not Ray's own handler.
    thread = threading.Thread(target=_catch, args=(trainer.fit, box), daemon=True)
    thread.start()
    try:
        while thread.is_alive():
            thread.join(_POLL_S)
            for event in ray.get(mailbox.take.remote()):
                on_event(event)
    except KeyboardInterrupt:
        on_event({"kind": "note", "text": "stopping"})
        raise
    finally:
        ray.kill(mailbox)  # workers that find nobody listening stop
        thread.join(_STOP_S)
    if "error" in box:
        raise _readable(box["error"], folder)
    return box["value"].return_value


def _catch(call: Callable[[], Any], box: dict[str, Any]) -> None:
    try:
        box["value"] = call()
    except BaseException as error:
        box["error"] = error


def _readable(error: BaseException, folder: RunFolder) -> BaseException:
    """The UserError behind what a worker or its stream raised, or that a worker was lost; else the error as it came."""
    seen: list[Any] = [error]
    for one in seen:
        if isinstance(one, UserError) and not isinstance(one, ray.exceptions.RayError):
            return UserError(str(one))
        # Ray wraps what was raised elsewhere, in several ways.
        inner = [getattr(one, name, None) for name in ("__cause__", "cause", "_base_exc", "health_check_failure")]
        inner += getattr(one, "worker_failures", {}).values()
        seen += [e for e in inner if isinstance(e, BaseException) and all(e is not s for s in seen)]
    if lost := [one for one in seen if isinstance(one, _LOST)]:
        return WorkerLost(f"a worker was lost: {_first_line(lost[0])}", str(folder.path))
    return error


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _record(event: Event, tracker: Tracker, tell: Listener) -> None:
    if event["kind"] == "epoch":
        figures = {"train/loss": event["loss"], "train/epoch_s": event["seconds"]}
        figures["train/interactions_per_s"] = event["interactions_per_s"]
        figures |= {f"time/{part}_s": seconds for part, seconds in event["split"].items()}
        figures |= {f"valid/{key}": value for key, value in event.get("metrics", {}).items()}
        tracker.log_metrics(figures, event["epoch"])
    tell(event)


def _result(config: Config, dataset: Dataset, folder: RunFolder, outcome: dict[str, Any], total_s: float) -> Result:
    history, test = outcome["history"], outcome["test"]
    metrics = {f"valid/{key}": value for key, value in history[-1].get("metrics", {}).items()}
    metrics |= {f"test/{key}": value for key, value in test.means().items()}
    epoch_s = tuple(record["seconds"] for record in history)
    timing = Timing(
        epoch_s=epoch_s,
        train_s=sum(epoch_s),
        eval_s=outcome["eval_s"] + sum(record.get("eval_s", 0.0) for record in history),
        first_batch_s=outcome["first_batch_s"],
        total_s=total_s,
    )
    return Result(
        metrics=metrics,
        test_users=test.users,
        left_out_users=test.left_out,
        workers=config.train.workers,
        epochs=len(history),
        interactions=dataset.manifest.train,
        loss=tuple(record["loss"] for record in history),
        timing=timing,
        fingerprint=dataset.manifest.fingerprint,
        versions=versions(),
        folder=folder.path,
    )
