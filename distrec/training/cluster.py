"""The Ray cluster of a run: start or connect, check resources, translate failures."""

import contextlib
import logging
import math
import os
from collections.abc import Iterator
from typing import Any

import ray

from distrec.core.errors import UserError, WorkerLost
from distrec.sampling.stream.ray import STREAM_CPUS
from distrec.sampling.stream.ray_internal import wrapped_errors
from distrec.training.config import Config

WORKER_CPUS = 1.0
_GPU_ACTORS = 8  # largest default of train.stream_actors for a worker on a GPU
_LOST = (  # errors raised when a worker, or an actor of its stream, has died
    ray.exceptions.RayActorError,
    ray.exceptions.OutOfMemoryError,
    ray.exceptions.NodeDiedError,
    ray.exceptions.WorkerCrashedError,
    ConnectionError,
)
_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # keep relative paths relative to the user's folder
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # a checkpoint is registered at the controller's next poll
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # an actor whose start takes 3 s of a core, and whose output is unused
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


@contextlib.contextmanager
def ray_running(workers: int, verbose: bool = False) -> Iterator[None]:
    """Run the body with a Ray that has room for `workers`; shut Ray down afterwards if it was started here.

    Uses the Ray that is initialized, else connects to RAY_ADDRESS, else starts Ray on this machine. Ray logs errors
    only, unless `verbose`.
    """
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
    """Connect to the cluster at RAY_ADDRESS, or start Ray on this machine."""
    logs: dict[str, Any] = {"logging_level": logging.INFO if verbose else logging.ERROR, "log_to_driver": verbose}
    address = os.environ.get("RAY_ADDRESS")
    if not address:
        # On one machine Ray's CPUs are bookkeeping: declare enough that a stream never queues for a worker's CPU.
        cpus = max(os.cpu_count() or 1, math.ceil(workers * (WORKER_CPUS + STREAM_CPUS)))
        ray.init("local", num_cpus=cpus, include_dashboard=False, **logs)
        return
    try:
        ray.init(**logs)
    except (ConnectionError, ray.exceptions.RayError) as error:
        raise UserError(
            f"cannot reach the Ray cluster at RAY_ADDRESS={address}: {error}\n"
            "Is it running? If it asks for a token, set RAY_AUTH_MODE=token too."
        ) from None


def describe_connection() -> str:
    """Return which Ray `ray_running` will use, for a log."""
    if ray.is_initialized():
        return "using the running instance"
    address = os.environ.get("RAY_ADDRESS")
    return f"connecting to {address}" if address else "starting on this machine"


def check_resources(config: Config) -> None:
    """Raise UserError if the cluster lacks CPUs or GPUs for the run, which Ray would wait for without end."""
    available, workers = _resources(), config.train.workers
    needed = workers * (WORKER_CPUS + STREAM_CPUS)
    if available.get("CPU", 0) < needed:
        raise UserError(
            f"train.workers={workers} needs {needed:g} CPUs ({WORKER_CPUS:g} a worker, {STREAM_CPUS:g} its stream); "
            f"the Ray cluster has {available.get('CPU', 0):g}"
        )
    if config.train.device == "cuda" and available.get("GPU", 0) < workers:
        raise UserError(
            f"train.device=cuda needs a GPU for each of {workers} workers; "
            f"the Ray cluster has {available.get('GPU', 0):g}"
        )


def _resources() -> dict[str, float]:
    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return resources


def uses_gpus(config: Config) -> bool:
    """Return whether the workers of the run get a GPU each."""
    return config.train.device != "cpu" and _resources().get("GPU", 0) >= config.train.workers


def stream_plan(config: Config) -> tuple[str, int]:
    """Return (`ray` or `thread`, Ray Data actors for each worker): `train.stream` and `train.stream_actors` resolved.

    A GPU takes a step in less than a fifth of the time that one core needs to draw 800 negatives per pair, so a worker
    on a GPU gets several actors.
    """
    if not uses_gpus(config):
        return config.stream_backend, config.train.stream_actors or 1
    cores = int(_resources()["CPU"] / config.train.workers - WORKER_CPUS)
    backend = "ray" if config.train.stream == "auto" else config.train.stream
    return backend, config.train.stream_actors or max(1, min(_GPU_ACTORS, cores))


def root_cause(error: BaseException, run_folder: str) -> BaseException:
    """Return the UserError raised in a worker or its stream, or WorkerLost if one died; else `error` itself."""
    chain = [error]
    for link in chain:
        if isinstance(link, UserError) and not isinstance(link, ray.exceptions.RayError):
            return UserError(str(link))
        chain += [inner for inner in wrapped_errors(link) if all(inner is not known for known in chain)]
    if lost := [link for link in chain if isinstance(link, _LOST)]:
        first_line = next(iter(str(lost[0]).strip().splitlines()), type(lost[0]).__name__)
        return WorkerLost(f"a worker was lost: {first_line}", run_folder)
    return error
