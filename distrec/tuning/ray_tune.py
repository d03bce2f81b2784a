"""Ray Tune: runs the jobs of a search in actors of the cluster. Its own samplers, rules and state are not used.

Ray Tune saves its state every ten seconds, so a kill loses trials and the state of its schedulers; the journal loses
neither.
"""

import contextlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray
import ray.tune
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from distrec.core.background import in_background
from distrec.core.config import parse
from distrec.core.errors import Diverged, UserError
from distrec.core.registry import import_modules
from distrec.data.dataset import MANIFEST, Dataset
from distrec.sampling.stream.ray_internal import forbid_reconnection
from distrec.training import connection
from distrec.training.config import Config
from distrec.tuning.config import SearchConfig
from distrec.tuning.journal import FINISHED
from distrec.tuning.search import Search
from distrec.tuning.trial import run_trial

_RESTARTS = 3  # of a trial whose process ends
_STOP_S = 20.0  # limit for trials to end after Ctrl-C
_PAYLOAD = "payload"
_ENVIRONMENT = {
    "TUNE_FUNCTION_THREAD_TIMEOUT_S": "60",  # a stopped trial of several workers takes seconds to end
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000",  # its state is not used
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
}


def train_function(config: dict[str, Any]) -> None:
    """Run one job in an actor of Ray Tune, and report its epochs and its end."""
    os.environ.setdefault("TUNE_FUNCTION_THREAD_TIMEOUT_S", _ENVIRONMENT["TUNE_FUNCTION_THREAD_TIMEOUT_S"])
    tree = json.loads(config["tree"])

    def report(event: dict[str, Any]) -> None:
        ray.tune.report({_PAYLOAD: json.dumps(event)})  # raises SystemExit if the trial is stopped

    try:
        import_modules(tree.get("run", {}).get("imports", ()))
        pa.set_memory_pool(pa.system_memory_pool())
        result = run_trial(parse(Config, tree), report, _prepared(config["data"]))
        end: dict[str, Any] = {"reason": FINISHED}
        if result.test_users:
            end |= {"metrics": result.metrics, "epochs": result.epochs}
    except Diverged as error:
        end = {"reason": "diverged", "text": str(error)}
    except UserError as error:
        end = {"reason": "failed", "text": str(error)}
    except Exception as error:
        logging.getLogger(__name__).exception("trial %s failed", config["name"])
        end = {"reason": "failed", "text": f"{type(error).__name__}: {error}"}
    report({"kind": "end", **end})


def _prepared(folder: str | None) -> Dataset | None:
    """Open the data that the search has prepared; None where this machine does not have them."""
    return Dataset.open(Path(folder)) if folder is not None and (Path(folder) / MANIFEST).exists() else None


@dataclass
class _Adapter:
    """What Ray Tune's searcher and scheduler share: which trial of Ray Tune is which job."""

    search: Search
    names: dict[str, str]


class _NotSaved:
    """Base of what Ray Tune pickles and writes to its folder, from which nothing is restored."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


class _Searcher(_NotSaved, Searcher):
    """Hands out the jobs."""

    def __init__(self, adapter: _Adapter) -> None:
        super().__init__()
        self.adapter = adapter

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:  # type: ignore[override]
        search = self.adapter.search
        job = search.next_job()
        if job is None:
            return Searcher.FINISHED if search.is_over else None
        self.adapter.names[trial_id] = job.name
        return {"name": job.name, "tree": json.dumps(job.tree), "data": job.data and str(job.data)}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        name = self.adapter.names.pop(trial_id, None)
        if name is None:
            return
        if error:
            text = f"its process ended {1 + _RESTARTS} times: killed, or out of memory"
            self.adapter.search.end(name, {"reason": "lost", "text": text})
        self.adapter.search.release(name)

    def save(self, checkpoint_path: str) -> None:
        Path(checkpoint_path).touch()

    def restore(self, checkpoint_path: str) -> None:
        raise NotImplementedError("a search is resumed from its journal")


class _Scheduler(_NotSaved, FIFOScheduler):
    """Passes reports on to the search, and its decisions to Ray Tune."""

    def __init__(self, adapter: _Adapter) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.adapter = adapter

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        name, search = self.adapter.names.get(trial.trial_id), self.adapter.search
        if name is None or search.closing:
            return TrialScheduler.STOP
        event = json.loads(result[_PAYLOAD])
        try:
            if event.pop("kind") == "end":
                search.end(name, event)
                return TrialScheduler.CONTINUE
            return TrialScheduler.STOP if search.report(name, event) else TrialScheduler.CONTINUE
        except UserError as error:  # the journal cannot be written
            search.fail(error)
            return TrialScheduler.STOP


class _Stopper(_NotSaved, ray.tune.Stopper):
    """Stops all trials when the search closes."""

    def __init__(self, adapter: _Adapter) -> None:
        self.adapter = adapter

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self.adapter.search.closing


@contextlib.contextmanager
def ray_for_trials(config: SearchConfig, verbose: bool, note: connection.Note) -> Iterator[None]:
    """Run the body with a Ray for trials, as `ray_running`."""
    for key, value in _ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    if not verbose:
        logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    with connection.ray_running(config.train.workers, verbose, note):
        yield


def trial_resources(config: SearchConfig) -> dict[str, float]:
    """Return what a trial reserves. Raises UserError if the cluster can never give it."""
    total: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    workers, given = config.train.workers, config.tune.resources
    cpu = given.cpu or float(workers)
    if workers > 1 and cpu < workers:
        raise UserError(f"tune.resources.cpu={cpu:g} is less than train.workers={workers}: each worker needs a CPU")
    gpu = given.gpu
    if gpu is None:
        gpu = 1.0 if config.train.device != "cpu" and total.get("GPU", 0) >= 1 and workers == 1 else 0.0
    if config.train.device == "cuda" and workers == 1 and not gpu:
        raise UserError("train.device=cuda: a trial needs a GPU, or a part of one: set tune.resources.gpu")
    for key, need in (("CPU", cpu), ("GPU", gpu)):
        if need > total.get(key, 0):
            key_given = f"tune.resources.{key.lower()}={need:g}"
            raise UserError(
                f"{key_given}: the Ray cluster has {total.get(key, 0):g} {key}s, so no trial could ever start"
            )
    return {"CPU": cpu} | ({"GPU": gpu} if gpu else {})


def trials_at_once(config: SearchConfig, resources: dict[str, float]) -> int:
    """Return for how many trials the cluster has room."""
    total: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    room = min(int(total[key] / need + 1e-9) for key, need in resources.items())
    if config.train.workers > 1 and config.train.device != "cpu" and total.get("GPU", 0) >= config.train.workers:
        room = min(room, int(total["GPU"]) // config.train.workers)  # its workers take the GPUs, not the trial itself
    return min(room, config.tune.concurrent or room)


def run_jobs(search: Search, resources: dict[str, float], poll: Callable[[], object], poll_s: float = 0.1) -> None:
    """Run the jobs of a search to its end, calling `poll` meanwhile in this thread.

    Raises:
        KeyboardInterrupt: after the trials have been stopped; they go on after a resume.
    """
    adapter = _Adapter(search, {})
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(search.slots)  # else 1: the second trial waits for the first's actor
    storage = search.folder.path / ".ray"  # where all nodes can write, as they write the trials there
    shutil.rmtree(storage, ignore_errors=True)
    # In a thread, so that Ctrl-C raises here, and that no work of this one delays the trials.
    fit = in_background(_tuner(adapter, resources, storage).fit, "tune")
    try:
        while not wait([fit], poll_s).done:
            poll()
    except BaseException:
        search.closing = True
        if not wait([fit], _STOP_S).done:
            forbid_reconnection()
        raise
    shutil.rmtree(storage, ignore_errors=True)
    poll()
    if search.error:
        raise search.error
    fit.result()


def _tuner(adapter: _Adapter, resources: dict[str, float], storage: Path) -> ray.tune.Tuner:
    return ray.tune.Tuner(
        ray.tune.with_resources(train_function, resources),
        tune_config=ray.tune.TuneConfig(
            num_samples=-1,
            search_alg=_Searcher(adapter),
            scheduler=_Scheduler(adapter),
            reuse_actors=True,
            trial_dirname_creator=lambda trial: trial.config["name"],
        ),
        run_config=ray.tune.RunConfig(
            name="session",
            storage_path=str(storage),
            stop=_Stopper(adapter),
            verbose=0,
            failure_config=ray.tune.FailureConfig(max_failures=_RESTARTS),
        ),
    )
