"""Runs recorded in MLflow. The only file that imports it.

Nothing here relies on MLflow's global state (active run, tracking URI): a client with an explicit URI does all the
work, from the driver process alone.
"""

import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from distrec.core.errors import UserError
from distrec.tracking.base import Tracker
from distrec.tracking.config import TrackingConfig
from distrec.tracking.environment import git_commit, versions
from distrec.tracking.result_table import Row, markdown_table
from distrec.tracking.uri import artifact_folder, check_database, public_uri, tracking_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric

_STATUSES = ("FINISHED", "FAILED", "KILLED")
# Servers accept 1000 metrics and 100 params or tags a request; values of 500 characters even from old servers.
_METRICS_A_BATCH, _PAIRS_A_BATCH, _VALUE_LIMIT = 1000, 100, 500
# A call to a server that is away may hold up training for twice the time-out: so it is tried this seldom.
_RETRY_AFTER_S = 60.0
# Without these MLflow tries for minutes. The user's own settings win.
_PATIENCE = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
}
_KIND = "custom_model_development"  # MLflow's pages then show what belongs to training, not to language models
_NOISY = ("mlflow", "alembic", "urllib3.connectionpool")

logger = logging.getLogger(__name__)


class MlflowTracker(Tracker):
    """One run in MLflow.

    `start` fails at once if the store is out of reach. From then on nothing raises: what cannot be sent is kept, one
    warning is given, and it is sent later, at `finish` at the latest. A run that continues writes its metrics behind
    those already there; steps repeated after a crash are recorded twice, with equal values.
    """

    def __init__(
        self,
        config: TrackingConfig,
        run_folder: Path,
        run_id: str | None = None,
        warn: Callable[[str], None] | None = None,
    ) -> None:
        self.run_id = run_id
        self.uri = tracking_uri(config.uri, run_folder)
        self._experiment = config.experiment
        self._artifacts = artifact_folder(self.uri, run_folder)
        self._warn = warn or logger.warning
        self._client: MlflowClient | None = None
        self._metrics: list[Metric] = []
        self._files: dict[str, str | Path] = {}
        self._lost_at: float | None = None

    def start(self, config: Mapping[str, object], tags: Mapping[str, str], run_name: str) -> None:
        """Opens the run: `config` as params and as `config.yaml`, `tags` with versions and commit.

        Args:
            config: {dotted key: plain value}, see `distrec.core.config.flat`.
            tags: the caller's tags; they win over ours.
            run_name: ignored when a run continues.

        Raises:
            UserError: the store cannot be reached or used, or the run to continue is not there.
        """
        try:
            check_database(self.uri)
            with _mlflow_settings():
                from mlflow import MlflowClient

                self._client = MlflowClient(tracking_uri=self.uri)
                before = self._continue_run() if self.run_id else self._create_run(run_name)
                self._log_setup(config, tags, before)
        except UserError:
            raise
        except Exception as error:  # requests, SQLAlchemy, OSError and MLflow's own: there is no common base
            raise UserError(
                f"cannot record to MLflow at {public_uri(self.uri)}: {_cause(error)}\n"
                "Start the server or set tracking.uri; tracking.enabled=false trains without it."
            ) from error

    def log_dataset(self, name: str, source: str, fingerprint: str, profile: Mapping[str, object]) -> None:
        from mlflow.entities import Dataset, DatasetInput

        # MLflow takes 36 characters of a digest; the tag `fingerprint` has all.
        data = Dataset(name, fingerprint[:36], "local", source, profile=json.dumps(profile))
        self._attempt(lambda client: client.log_inputs(self.run_id, [DatasetInput(data)]))

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Records figures at a step. `recall@20` becomes `recall_at_20`: MLflow has no @ in names."""
        from mlflow.entities import Metric

        now_ms = int(time.time() * 1000)
        # A request that is sent again, with the same times, is recorded once.
        self._metrics += [Metric(_name(key), float(value), now_ms, step) for key, value in metrics.items()]
        self._send()

    def log_table(self, rows: Sequence[Row], name: str = "results.md") -> None:
        self._files[name] = markdown_table(rows)
        self._send()

    def log_file(self, path: Path) -> None:
        self._files[path.name] = path
        self._send()

    def finish(self, status: str = "FINISHED") -> None:
        assert status in _STATUSES, status
        self._send(final=True)
        if self._lost_at is not None:
            self._warn(
                f"MLflow at {public_uri(self.uri)} is still away: run {self.run_id} stays open, "
                f"without {len(self._metrics)} metrics and {len(self._files)} files"
            )
            return
        self._attempt(lambda client: client.set_terminated(self.run_id, status))

    def _create_run(self, run_name: str) -> dict[str, str]:
        client = self._started()
        experiment = client.get_experiment_by_name(self._experiment)
        if experiment is None:
            experiment_id = client.create_experiment(
                self._experiment, artifact_location=self._artifacts, tags={"mlflow.experimentKind": _KIND}
            )
        elif experiment.lifecycle_stage != "active":
            raise UserError(
                f"the MLflow experiment {self._experiment!r} is deleted; restore it or set tracking.experiment"
            )
        else:
            experiment_id = experiment.experiment_id
        self.run_id = client.create_run(experiment_id, run_name=run_name).info.run_id
        return {}

    def _continue_run(self) -> dict[str, str]:
        """Sets the run to RUNNING again; returns its params."""
        from mlflow.exceptions import MlflowException

        try:
            run = self._started().get_run(self.run_id)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            raise UserError(
                f"MLflow at {public_uri(self.uri)} has no run {self.run_id} to continue: "
                "is tracking.uri the one it started with?"
            ) from None
        self._started().update_run(self.run_id, status="RUNNING")
        return run.data.params

    def _log_setup(self, config: Mapping[str, object], tags: Mapping[str, str], before: Mapping[str, str]) -> None:
        from mlflow.entities import Param, RunTag

        params = {_name(key): _shortened(value) for key, value in config.items()}
        # A param can be written once. What a resumed run changes (the number of workers) is told in a tag.
        changed = {key: f"{before[key]} -> {value}" for key, value in params.items() if before.get(key, value) != value}
        changed.pop("run.resume", None)
        ours = {f"version.{package}": version for package, version in versions().items()}
        if commit := git_commit(Path(__file__).parent):
            # The name under which MLflow's own pages show the commit.
            ours["mlflow.source.git.commit"] = commit
        ours |= {"mlflow.source.name": "distrec train", "mlflow.source.type": "LOCAL"}
        if changed:
            ours["changed_on_resume"] = "; ".join(f"{key}: {change}" for key, change in changed.items())
        pairs = [Param(key, value) for key, value in params.items() if key not in before]
        marks = [RunTag(_name(key), _shortened(value)) for key, value in (ours | dict(tags)).items()]
        for at in range(0, len(pairs), _PAIRS_A_BATCH):
            self._started().log_batch(self.run_id, params=pairs[at : at + _PAIRS_A_BATCH])
        for at in range(0, len(marks), _PAIRS_A_BATCH):
            self._started().log_batch(self.run_id, tags=marks[at : at + _PAIRS_A_BATCH])
        self._started().log_text(self.run_id, _as_yaml(config), "config.yaml")

    def _started(self) -> "MlflowClient":
        assert self._client is not None, "start was not called"
        return self._client

    def _send(self, final: bool = False) -> None:
        """Sends what is waiting, unless the server was lost a moment ago."""
        if self._lost_at is None or final or time.monotonic() - self._lost_at >= _RETRY_AFTER_S:
            self._attempt(self._send_all)

    def _send_all(self, client: "MlflowClient") -> None:
        while self._metrics:
            client.log_batch(self.run_id, metrics=self._metrics[:_METRICS_A_BATCH])
            del self._metrics[:_METRICS_A_BATCH]
        while self._files:
            name, content = next(iter(self._files.items()))
            if isinstance(content, Path):
                client.log_artifact(self.run_id, str(content))
            else:
                client.log_text(self.run_id, content, name)
            del self._files[name]

    def _attempt(self, call: Callable[["MlflowClient"], None]) -> None:
        client = self._started()
        try:
            with _mlflow_settings():
                call(client)
        except Exception as error:  # whatever is wrong with the records, hours of training must not end for it
            if self._lost_at is None:
                self._warn(
                    f"MLflow at {public_uri(self.uri)} is lost, training goes on and keeps the figures: {_cause(error)}"
                )
            self._lost_at = time.monotonic()
        else:
            if self._lost_at is not None:
                self._warn(f"MLflow at {public_uri(self.uri)} is back, nothing was lost")
            self._lost_at = None


@contextmanager
def _mlflow_settings() -> Iterator[None]:
    """Short time-outs and no chatter, while MLflow is at work and no longer.

    Telemetry and git's complaint are read once, at import, and are therefore set for good: an installation without
    internet must not wait for a connection that nobody asked for.
    """
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    # MLflow sets its own log level when first imported: it must have done so before ours is set.
    import mlflow  # noqa: F401

    levels = {name: logging.getLogger(name).level for name in _NOISY}
    ours = {key: value for key, value in _PATIENCE.items() if key not in os.environ}
    os.environ.update(ours)
    for name in _NOISY:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
        for key in ours:
            os.environ.pop(key, None)


def _name(key: str) -> str:
    """A key without the characters that MLflow refuses."""
    key = key.replace("@", "_at_")
    return "".join(c if c.isalnum() or c in "_-./ :" else "_" for c in key)[:250]


def _shortened(value: object) -> str:
    text = str(value)
    note = "... (whole in config.yaml)"
    return text if len(text) <= _VALUE_LIMIT else text[: _VALUE_LIMIT - len(note)] + note


def _as_yaml(config: Mapping[str, object]) -> str:
    """Dotted keys as the nested sections of a configuration file, so that it can be trained again from the artifact."""
    tree: dict[str, object] = {}
    for key, value in config.items():
        *path, last = key.split(".")
        section = tree
        for name in path:
            section = section.setdefault(name, {})  # type: ignore[assignment]
        section[last] = json.loads(json.dumps(value, default=str))
    return yaml.safe_dump(tree, sort_keys=False)


def _cause(error: BaseException) -> str:
    """The innermost error in one line: the outer ones wrap it in pages."""
    while error.__cause__ or error.__context__:
        error = error.__cause__ or error.__context__  # type: ignore[assignment]
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__
