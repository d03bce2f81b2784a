"""What a run needs of its Ray cluster: resources, wait for them, failures of workers."""

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
import torch
from ray.util.placement_group import (
    get_current_placement_group,
    placement_group,
    placement_group_table,
    remove_placement_group,
)

from distrec.core.errors import UNWRITABLE, Diverged, UserError, WorkerLost
from distrec.core.memory import free_memory
from distrec.data.dataset import Dataset
from distrec.sampling.stream.ray import STREAM_CPUS
from distrec.sampling.stream.ray_internal import wrapped_errors
from distrec.sharding.checkpoint import unwritable
from distrec.training.config import Config
from distrec.training.connection import WORKER_CPUS
from distrec.training.device_conditions import prevented
from distrec.training.planning.estimate import Plan, memory_note
from distrec.training.planning.sizes import Sizes
from distrec.training.planning.worker_memory import GPU_ACTORS, PAIR_ACTORS

_FIRST_NOTE_S, _NOTE_S = 3.0, 30.0  # until the first note about a wait, and between notes
_LOST = (  # errors raised when a worker, or an actor of its stream, has died
    ray.exceptions.RayActorError,
    ray.exceptions.OutOfMemoryError,
    ray.exceptions.NodeDiedError,
    ray.exceptions.WorkerCrashedError,
    ConnectionError,
)


def check_resources(config: Config) -> None:
    """Raise UserError if the cluster lacks CPUs or GPUs for the run, which Ray would wait for without end."""
    total, workers = _resources(), config.train.workers
    needed = sum(bundle.get("CPU", 0) for bundle in _bundles(config))
    if total.get("CPU", 0) < needed and get_current_placement_group():
        raise UserError(_group_lacks(config))
    if total.get("CPU", 0) < needed:
        raise UserError(
            f"train.workers={workers} needs {needed:g} CPUs ({WORKER_CPUS:g} a worker, {STREAM_CPUS:g} its stream); "
            f"the Ray cluster has {total.get('CPU', 0):g}"
        )
    if config.train.device == "cuda" and total.get("GPU", 0) < workers:
        raise UserError(
            f"train.device=cuda needs a GPU for each of {workers} workers; the Ray cluster has {total.get('GPU', 0):g}"
        )


def check_memory(config: Config, dataset: Dataset, note: Callable[[str], object]) -> None:
    """Raise UserError if tables and optimizer state exceed the memory of the cluster; note if the rest may not fit."""
    gpu = uses_gpus(config)
    if gpu and not torch.cuda.is_available():
        return  # this process sees none of the workers' GPUs
    nodes = [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    machines = min(config.train.workers, len(nodes))
    if gpu:
        limit = float(torch.cuda.get_device_properties(0).total_memory)
    elif len(nodes) == 1:
        free = free_memory(torch.device("cpu"))
        limit = math.inf if free is None else float(free)
    else:  # what was free when the largest node started, less the objects of Ray
        limit = max(node["Resources"].get("memory", math.inf) for node in nodes)
    if text := memory_note(Plan(config, Sizes.of(dataset), machines, gpu), limit):
        note(text)


def wait_for_resources(config: Config, note: Callable[[str], object]) -> None:
    """Wait until the cluster has room for the run, for at most `train.wait_s`; note what is missing every half minute.

    Raises:
        UserError: it still has none. Within a placement group, such as that of a Ray Tune trial, after seconds: the
            resources may be those of trials that wait in the same way.
    """
    bundles, started, noted = _bundles(config), time.monotonic(), float("-inf")
    if not bundles:
        return
    within_group = get_current_placement_group() is not None
    limit_s = _FIRST_NOTE_S if within_group else max(_FIRST_NOTE_S, config.train.wait_s)  # a group takes a moment
    group = placement_group(bundles, strategy=_strategy(config))  # freed at once: Ray Train creates its own
    try:
        while not group.wait(max(0.0, min(_FIRST_NOTE_S, started + limit_s - time.monotonic()))):
            missing = describe_missing(config)
            if time.monotonic() - started >= limit_s:
                late = f"no room in the Ray cluster after {limit_s:g} s (train.wait_s): the run needs {missing}"
                raise UserError(_group_lacks(config) if within_group else late)
            if time.monotonic() - noted >= _NOTE_S:
                noted = time.monotonic()
                note(f"ray: waiting for {missing}")
    finally:
        remove_placement_group(group)


def describe_missing(config: Config) -> str:
    """Return what the run needs and what the cluster has: `3 CPUs; 0 of 2 are free`."""
    free, total = _resources(free=True), _resources()
    needed = {kind: sum(bundle.get(kind, 0) for bundle in _bundles(config)) for kind in ("CPU", "GPU")}
    return "; ".join(
        f"{count:g} {kind}s; {free.get(kind, 0):g} of {total.get(kind, 0):g} are free"
        for kind, count in needed.items()
        if count
    )


def describe_start() -> str:
    """Return a line on workers that have not started yet, which may wait for a run that started at the same moment."""
    return f"the workers are starting; {_resources(free=True).get('CPU', 0):g} of {_resources()['CPU']:g} CPUs are free"


def _group_lacks(config: Config) -> str:
    cpus, _ = _current_group()
    return (
        f"train.workers={config.train.workers} needs {describe_missing(config)}, and the placement group of this "
        f"process has {cpus:g}: give it a CPU for each worker (Ray Tune: tune.with_resources(function, "
        f'{{"CPU": {config.train.workers}}})), or use fewer workers'
    )


def _current_group() -> tuple[float, list[str]]:
    """Return the CPUs of the placement group that this process runs in, and its nodes; (0, []) outside of any."""
    group = get_current_placement_group()
    if group is None:
        return 0.0, []
    table = placement_group_table(group)
    cpus = sum(bundle.get("CPU", 0) for bundle in table["bundles"].values())
    return cpus, sorted(set(table["bundles_to_node_id"].values()))


def _nodes(config: Config) -> list[str]:
    """Return the nodes on which workers run with the CPUs of this process's placement group; [] if it has too few.

    The process itself has reserved them, and does not need them while the workers run, so these reserve none.
    """
    cpus, nodes = _current_group()
    return nodes if cpus >= config.train.workers * WORKER_CPUS else []


def _bundles(config: Config) -> list[dict[str, float]]:
    """Return what the run reserves in the cluster: a bundle for each worker and one for its stream."""
    gpu = {"GPU": 1.0} if uses_gpus(config) else {}
    if _nodes(config):
        return [gpu] * config.train.workers if gpu else []
    return [{"CPU": WORKER_CPUS} | gpu] * config.train.workers + [{"CPU": STREAM_CPUS}] * config.train.workers


def _strategy(config: Config) -> str:
    # PACK would fill one node first; workers on the CPU should use the cores and memory of all nodes.
    return "PACK" if uses_gpus(config) else "SPREAD"


def scaling(config: Config) -> dict[str, Any]:
    """Return the arguments of Ray Train's ScalingConfig."""
    gpu, nodes = uses_gpus(config), _nodes(config)
    # A worker must reserve something: a byte of memory where the CPUs are those of the placement group.
    resources = {"CPU": 0.0, "memory": 1.0} if nodes else {"CPU": WORKER_CPUS}
    return {
        "num_workers": config.train.workers,
        "use_gpu": gpu,
        "placement_strategy": _strategy(config),
        "resources_per_worker": resources | ({"GPU": 1.0} if gpu else {}),
        "label_selector": {"ray.io/node-id": f"in({','.join(nodes)})"} if nodes else None,
    }


def _resources(free: bool = False) -> dict[str, float]:
    resources: dict[str, float] = ray.available_resources() if free else ray.cluster_resources()  # type: ignore[no-untyped-call]
    return resources


def describe_resources() -> str:
    """Return where the cluster is and what it has, for a report."""
    has, address = _resources(), ray.get_runtime_context().gcs_address
    return f"it works at {address}, with {has.get('CPU', 0):g} CPUs and {has.get('GPU', 0):g} GPUs"


def uses_gpus(config: Config) -> bool:
    """Return whether the workers of the run get a GPU each."""
    return config.train.device != "cpu" and _resources().get("GPU", 0) >= config.train.workers


def stream_plan(config: Config, users: int, items: int) -> tuple[str, int]:
    """Return (`ray` or `thread`, Ray Data actors for each worker): `train.stream` and `train.stream_actors` resolved.

    A GPU takes a step in less than a fifth of the time that one core needs to draw 800 negatives per pair, so a worker
    on a GPU gets several actors, unless the GPU draws.
    """
    if _nodes(config):  # a process of Ray Data would need CPUs beside those of the placement group
        if config.train.stream == "ray":
            raise UserError("train.stream=ray needs CPUs outside of the placement group: leave train.stream out")
        return "thread", 1
    if not uses_gpus(config):
        return config.stream_backend, config.train.stream_actors or 1
    cores = int(_resources()["CPU"] / config.train.workers - WORKER_CPUS)
    backend = "ray" if config.train.stream == "auto" else config.train.stream
    on_host = prevented(config, users, items, torch.device("cuda"), config.train.workers)
    most = GPU_ACTORS if on_host else PAIR_ACTORS
    return backend, config.train.stream_actors or max(1, min(most, cores))


def root_cause(error: BaseException, run_folder: str) -> BaseException:
    """Return the UserError raised in a worker or its stream, or for a file that cannot be written; WorkerLost if
    a worker died; else `error` itself."""
    chain = [error]
    for link in chain:
        if isinstance(link, UserError) and not isinstance(link, ray.exceptions.RayError):
            return (Diverged if isinstance(link, Diverged) else UserError)(str(link))
        if isinstance(link, OSError) and link.errno in UNWRITABLE:
            return unwritable(Path(link.filename or run_folder), link)
        chain += [inner for inner in wrapped_errors(link) if all(inner is not known for known in chain)]
    if lost := [link for link in chain if isinstance(link, _LOST)]:
        first_line = next(iter(str(lost[0]).strip().splitlines()), type(lost[0]).__name__)
        return WorkerLost(f"a worker was lost: {first_line}", run_folder)
    return error
