"""Runs recorded in MLflow. The only module that imports it.

Does not use MLflow's global state (active run, tracking URI): a client with an explicit URI in the driver process
makes all calls.
"""

import json
import logging
import os
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from distrec.core.config import dump, flat
from distrec.core.errors import UserError
from distrec.core.file_lock import FileLock
from distrec.core.section import Section
from distrec.tracking.base import Tracker
from distrec.tracking.config import TrackingConfig
from distrec.tracking.environment import git_commit, versions
from distrec.tracking.result_table import Row, markdown_table
from distrec.tracking.uri import artifact_folder, check_database, exists, public_uri, sqlite_file, tracking_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient

    _Request = Callable[[MlflowClient, str], None]

_STATUSES = ("FINISHED", "FAILED", "KILLED")
# Servers accept 1000 metrics and 100 params or tags a request, and old ones values of up to 500 characters.
_METRICS_PER_REQUEST, _PARAMS_PER_REQUEST, _VALUE_LIMIT = 1000, 100, 500
# A call to an unreachable server blocks training for up to twice the time-out, hence the long interval.
_RETRY_AFTER_S = 60.0
# MLflow's defaults retry for minutes. Variables that the user has set take precedence.
_TIMEOUTS = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
}
# MLflow's page then opens the experiment under "Model training", not among those on language models.
_KIND, _EXPERIMENT_KIND = "mlflow.experimentKind", "custom_model_development"
_NOISY_LOGGERS = ("mlflow", "alembic", "urllib3.connectionpool")

logger = logging.getLogger(__name__)


class MlflowTracker(Tracker):
    """One run in MLflow.

    `start` raises if the store cannot be used. No later call raises: records that cannot be sent are kept, with one
    warning, and sent later, at the latest by `finish`. A continued run appends its metrics to those already recorded;
    steps that are repeated after a crash are recorded twice, with equal values.
    """

    uri: str

    def __init__(
        self,
        config: TrackingConfig,
        run_folder: Path,
        run_id: str | None,
        warn: Callable[[str], None] | None,
        run_uri: str | None = None,
    ) -> None:
        self.run_id = run_id
        recorded = run_uri if run_uri and exists(run_uri) else None
        self.uri = tracking_uri(recorded if config.uri is None else config.uri, run_folder)
        self._where = f"MLflow at {public_uri(self.uri)}"
        self._experiment = config.experiment or os.environ.get("MLFLOW_EXPERIMENT_NAME") or "distrec"
        self._artifacts = artifact_folder(self.uri, run_folder)
        self._warn = warn or logger.warning
        self._client: MlflowClient | None = None
        self._pending: list[_Request] = []
        self._failing_since: float | None = None

    @property
    def destination(self) -> str:
        return f"{self._where}, experiment {self._experiment}"

    def start(self, config: Section, tags: Mapping[str, str], run_name: str) -> None:
        """Create or continue the run, with `config` as params and as `config.yaml`.

        Args:
            config: the whole configuration.
            tags: recorded beside the versions and the commit; they take precedence over them.
            run_name: ignored if a run is continued.

        Raises:
            UserError: the store cannot be reached or used, or it has no such run to continue.
        """
        with self._connected() as client:
            self._client = client
            recorded = self._continue_run(client, self.run_id) if self.run_id else {}
            self.run_id = self.run_id or self._create_run(client, run_name)
            _log_setup(client, self.run_id, config, tags, recorded)

    def check(self) -> str:
        if not exists(self.uri):
            return "will be created"
        with self._connected() as client:
            client.search_experiments(max_results=1)
        return "works"

    @contextmanager
    def _connected(self) -> Iterator["MlflowClient"]:
        """Run the body with a client of the store. Raise UserError for whatever fails."""
        try:
            check_database(self.uri)
            with _mlflow_settings(), self._exclusive():
                from mlflow import MlflowClient

                yield MlflowClient(tracking_uri=self.uri)
        except UserError:
            raise
        except Exception as error:  # requests, SQLAlchemy, OSError and MLflow have no common base class
            raise UserError(
                f"cannot record to {self._where}: {_cause(error)}\n"
                "Start the server or set tracking.uri; tracking.enabled=false trains without it."
            ) from error

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        """Let one process at a time open a database file: MLflow creates and migrates its tables without a lock."""
        file = sqlite_file(self.uri)
        if file is None:
            yield
            return
        lock = FileLock(file.with_name(f"{file.name}.lock"))
        lock.acquire_waiting(lambda holder: self._warn(f"tracking: waiting for {holder}, which opens the database"))
        try:
            yield
        finally:
            lock.release()

    def log_dataset(self, name: str, source: str, fingerprint: str, profile: Mapping[str, object]) -> None:
        from mlflow.entities import Dataset, DatasetInput

        # MLflow limits a digest to 36 characters; the tag `fingerprint` holds all.
        data = Dataset(name, fingerprint[:36], "local", source, profile=json.dumps(profile))
        self._send(lambda client, run_id: client.log_inputs(run_id, [DatasetInput(data)]))

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Record metrics at a step. `recall@20` becomes `recall_at_20`: MLflow does not allow @ in names."""
        from mlflow.entities import Metric

        # The time of the call, not of sending: a request that is sent twice is then recorded once.
        now_ms = int(time.time() * 1000)
        records = [Metric(_name(key), float(value), now_ms, step) for key, value in metrics.items()]

        def log_batches(client: "MlflowClient", run_id: str) -> None:
            for first in range(0, len(records), _METRICS_PER_REQUEST):
                client.log_batch(run_id, metrics=records[first : first + _METRICS_PER_REQUEST])

        self._send(log_batches)

    def log_tags(self, tags: Mapping[str, str]) -> None:
        from mlflow.entities import RunTag

        records = [RunTag(_name(key), _shortened(tag)) for key, tag in tags.items()]

        def log(client: "MlflowClient", run_id: str) -> None:
            client.log_batch(run_id, tags=records)

        self._send(log)

    def log_table(self, rows: Sequence[Row]) -> None:
        self._send(lambda client, run_id: client.log_text(run_id, markdown_table(rows), "results.md"))

    def log_file(self, path: Path) -> None:
        self._send(lambda client, run_id: client.log_artifact(run_id, str(path)))

    def finish(self, status: str = "FINISHED") -> None:
        assert status in _STATUSES, status
        self._send(lambda client, run_id: client.set_terminated(run_id, status), final=True)
        if self._pending:
            self._warn(
                f"{self._where} still fails: run {self.run_id} stays open, without {len(self._pending) - 1} records"
            )

    def _create_run(self, client: "MlflowClient", run_name: str) -> str:
        from mlflow.exceptions import MlflowException

        experiment = client.get_experiment_by_name(self._experiment)
        if experiment is None:
            try:
                experiment_id = client.create_experiment(self._experiment, self._artifacts, {_KIND: _EXPERIMENT_KIND})
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
                return self._create_run(client, run_name)  # another run has created it at the same moment
        elif experiment.lifecycle_stage == "active":
            experiment_id = experiment.experiment_id
            if _KIND not in experiment.tags:
                with suppress(MlflowException):  # only some users of a server may set tags
                    client.set_experiment_tag(experiment_id, _KIND, _EXPERIMENT_KIND)
        else:
            raise UserError(f"MLflow experiment {self._experiment!r} is deleted; restore it or set tracking.experiment")
        run_id: str = client.create_run(experiment_id, run_name=run_name).info.run_id
        return run_id

    def _continue_run(self, client: "MlflowClient", run_id: str) -> dict[str, str]:
        """Set the run to RUNNING; return its params."""
        from mlflow.exceptions import MlflowException

        try:
            run = client.get_run(run_id)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            raise UserError(
                f"{self._where} has no run {run_id} to continue: is tracking.uri the one with which it was started?"
            ) from None
        client.update_run(run_id, status="RUNNING")
        return run.data.params

    def _send(self, request: "_Request", final: bool = False) -> None:
        """Send a request after the pending ones; keep it if MLflow fails, or did so less than a minute ago."""
        assert self._client is not None and self.run_id is not None, "start was not called"
        self._pending.append(request)
        failing = self._failing_since
        if failing is not None and not final and time.monotonic() - failing < _RETRY_AFTER_S:
            return
        try:
            with _mlflow_settings():
                while self._pending:
                    self._pending[0](self._client, self.run_id)
                    del self._pending[0]
        except Exception as error:  # no failure of tracking may end hours of training
            if failing is None:
                self._warn(f"{self._where} fails; training continues and keeps the records: {_cause(error)}")
            self._failing_since = time.monotonic()
        else:
            if failing is not None:
                self._warn(f"{self._where} works again; no record was lost")
            self._failing_since = None


def add_to_run(uri: str, run_id: str, path: Path, folder: str | None = None) -> None:
    """Add a file, or the files of a folder, to the artifacts of a recorded run.

    Raises:
        UserError: the store cannot be reached, or has no such run.
    """
    try:
        check_database(uri)
        with _mlflow_settings():
            from mlflow import MlflowClient

            client = MlflowClient(tracking_uri=uri)
            (client.log_artifacts if path.is_dir() else client.log_artifact)(run_id, str(path), folder)
    except Exception as error:  # as in `_connected`
        raise UserError(f"MLflow at {public_uri(uri)} did not take {path.name}: {_cause(error)}") from error


def save_pyfunc(
    path: Path,
    data: Path,
    loader_module: str,
    inputs: Mapping[str, str],
    outputs: Mapping[str, str],
    params: Mapping[str, int | str],
) -> None:
    """Write a model of MLflow's pyfunc flavour to a new folder.

    Args:
        path: the folder.
        data: folder that is copied into it.
        loader_module: its `_load_pyfunc` returns the model, given the copy.
        inputs: MLflow's type of each column of the input.
        outputs: the same of the output.
        params: defaults of the parameters.
    """
    with _mlflow_settings():
        import mlflow.pyfunc
        from mlflow.models import ModelSignature
        from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema

        read, written = (Schema([ColSpec(kind, name) for name, kind in c.items()]) for c in (inputs, outputs))
        kinds = {int: "long", str: "string"}
        known = ParamSchema([ParamSpec(name, kinds[type(value)], value) for name, value in params.items()])
        with warnings.catch_warnings(action="ignore"):  # about an input example, which is not needed
            mlflow.pyfunc.save_model(
                str(path),
                loader_module=loader_module,
                data_path=str(data),
                signature=ModelSignature(read, written, known),
                pip_requirements=["distrec"],
            )


def _log_setup(
    client: "MlflowClient", run_id: str, config: Section, tags: Mapping[str, str], recorded: Mapping[str, str]
) -> None:
    """Log params (but those `recorded` before), tags and `config.yaml`."""
    from mlflow.entities import Param, RunTag

    params = {_name(key): _shortened(value) for key, value in flat(config).items()}
    new = [Param(key, value) for key, value in params.items() if key not in recorded]
    # A param can be written only once. What a resumed run changes (the number of workers) is recorded in a tag.
    changed = [
        f"{key}: {recorded[key]} -> {value}"
        for key, value in params.items()
        if recorded.get(key, value) != value and key != "run.resume"
    ]
    own_tags = {f"version.{package}": version for package, version in versions().items()}
    own_tags |= {"mlflow.source.name": "distrec train", "mlflow.source.type": "LOCAL"}
    if commit := git_commit(Path(__file__).parent):
        own_tags["mlflow.source.git.commit"] = commit  # MLflow's pages show the commit under this name
    if changed:
        own_tags["changed_on_resume"] = "; ".join(changed)
    for first in range(0, len(new), _PARAMS_PER_REQUEST):
        client.log_batch(run_id, params=new[first : first + _PARAMS_PER_REQUEST])
    client.log_batch(run_id, tags=[RunTag(_name(key), _shortened(tag)) for key, tag in (own_tags | dict(tags)).items()])
    client.log_text(run_id, dump(config), "config.yaml")


@contextmanager
def _mlflow_settings() -> Iterator[None]:
    """Set short time-outs and silence MLflow's loggers within the block.

    Telemetry and GitPython's warning are read once, at import, and are therefore switched off permanently: a machine
    without internet must not block on a telemetry connection.
    """
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    # The first import sets MLflow's own log level, so it must come before ours is set.
    import mlflow  # noqa: F401

    levels = {name: logging.getLogger(name).level for name in _NOISY_LOGGERS}
    added = {key: value for key, value in _TIMEOUTS.items() if key not in os.environ}
    os.environ.update(added)
    for name in levels:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
        for key in added:
            os.environ.pop(key, None)


def _name(key: str) -> str:
    """Replace the characters that MLflow does not allow in names."""
    key = key.replace("@", "_at_")
    return "".join(c if c.isalnum() or c in "_-./ :" else "_" for c in key)[:250]


def _shortened(value: object) -> str:
    text = str(value)
    note = "... (whole in config.yaml)"
    return text if len(text) <= _VALUE_LIMIT else text[: _VALUE_LIMIT - len(note)] + note


def _cause(error: BaseException) -> str:
    """Return the innermost error in one line: the outer ones wrap it in pages."""
    while inner := error.__cause__ or error.__context__:
        error = inner
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__
