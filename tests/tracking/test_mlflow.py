"""Recording to real stores, a sqlite file and a server, read back by an independent client."""

import json
import logging
import os
import shutil
import socket
import subprocess
import sys
import time

import pytest
import yaml
from mlflow import MlflowClient
from pydantic import create_model

from distrec.core.errors import UserError
from distrec.core.section import Section
from distrec.tracking import open_tracker
from distrec.tracking.base import Tracker
from distrec.tracking.config import TrackingConfig
from tests.tracking.mlflow_server import free_port, mlflow_server

FILES = ("a" * 400, "b" * 400)


class Decay(Section):
    scope: str = "full"


class Optim(Section):
    lr: float = 0.01
    decay: Decay = Decay()


class Data(Section):
    files: tuple[str, ...] = FILES


class Eval(Section):
    ks: tuple[int, ...] = (5, 20)


class RunConfig(Section):
    seed: int = 7
    optim: Optim = Optim()
    data: Data = Data()
    eval: Eval = Eval()


class NewerConfig(RunConfig):
    new: int = 1


CONFIG = RunConfig()


@pytest.fixture
def working_folder(tmp_path, monkeypatch):
    """Change to an empty folder that must stay empty."""
    folder = tmp_path / "working"
    folder.mkdir()
    monkeypatch.chdir(folder)
    yield folder
    assert os.listdir(folder) == []


@pytest.fixture
def store(empty_store, tmp_path):
    """Put an empty store where `started` records by default."""
    (tmp_path / "runs").mkdir()
    return shutil.copy(empty_store, tmp_path / "runs" / "mlflow.db")


def started(tmp_path, run_id=None, warn=None, config=CONFIG, **settings):
    tracker = open_tracker(TrackingConfig(**settings), tmp_path / "runs" / "one", run_id, warn)
    tracker.start(config, {"study": "decay"}, "one")
    return tracker


def history(client, run_id, key):
    return [(m.step, m.value) for m in client.get_metric_history(run_id, key)]


def artifact(client, run_id, name, folder):
    folder.mkdir(exist_ok=True)
    with open(client.download_artifacts(run_id, name, str(folder))) as file:
        return file.read()


def test_the_environment_names_store_and_experiment(store, tmp_path, monkeypatch):
    """What the configuration says takes precedence, and a run that is continued stays where it was started."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{store}")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "from the environment")
    (tmp_path / "elsewhere").mkdir()
    tracker = open_tracker(TrackingConfig(), tmp_path / "elsewhere" / "one")
    assert tracker.destination == f"MLflow at sqlite:///{store}, experiment from the environment"
    tracker.start(CONFIG, {}, "one")
    tracker.finish()
    client = MlflowClient(f"sqlite:///{store}")
    experiment = client.get_experiment(client.get_run(tracker.run_id).info.experiment_id)
    assert experiment.name == "from the environment"
    assert experiment.tags["mlflow.experimentKind"] == "custom_model_development"
    config = TrackingConfig(uri="sqlite:///~/own.db", experiment="own")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert (
        open_tracker(config, tmp_path / "one").destination == f"MLflow at sqlite:///{tmp_path}/own.db, experiment own"
    )
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "")
    again = open_tracker(TrackingConfig(), tmp_path / "elsewhere" / "one", tracker.run_id, run_uri=tracker.uri)
    again.start(CONFIG, {}, "one")
    again.finish()
    moved = open_tracker(TrackingConfig(), tmp_path / "one", tracker.run_id, run_uri="sqlite:////gone/mlflow.db")
    assert moved.destination == f"MLflow at sqlite:///{tmp_path}/mlflow.db, experiment distrec"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "./mlruns")
    with pytest.raises(UserError, match="MLFLOW_TRACKING_URI './mlruns' is not usable"):
        open_tracker(TrackingConfig(), tmp_path / "one")


def test_an_experiment_of_others_gets_the_tag_of_training(store, tmp_path):
    client = MlflowClient(f"sqlite:///{store}")
    client.create_experiment("distrec")
    client.create_experiment("theirs", tags={"mlflow.experimentKind": "genai_development"})
    for name, kind in (("distrec", "custom_model_development"), ("theirs", "genai_development")):
        started(tmp_path, experiment=name).finish()
        assert client.get_experiment_by_name(name).tags["mlflow.experimentKind"] == kind


def record_a_run(tmp_path, **settings):
    tracker = started(tmp_path, **settings)
    for step in (1, 2):
        tracker.log_metrics({"loss": 4.0 / step, "recall@20": 0.1 * step}, step)
    tracker.log_metrics({f"m/{i}": float(i) for i in range(1200)}, 2)
    tracker.log_table([{"model": "mf", "recall@20": 0.2}])
    result = tmp_path / "result.json"
    result.write_text(json.dumps({"recall@20": 0.2}))
    tracker.log_file(result)
    tracker.finish()
    return tracker.run_id


def check_the_run(client, run_id, folder):
    run = client.get_run(run_id)
    assert (run.info.status, run.info.run_name) == ("FINISHED", "one")
    assert run.info.end_time >= run.info.start_time
    assert run.data.params["optim.lr"] == "0.01" and run.data.params["eval.ks"] == "[5, 20]"
    shortened = run.data.params["data.files"]
    assert len(shortened) == 500 and shortened.endswith("(whole in config.yaml)")
    assert run.data.tags["study"] == "decay" and run.data.tags["version.torch"]
    assert history(client, run_id, "loss") == [(1, 4.0), (2, 2.0)]
    assert history(client, run_id, "recall_at_20") == [(1, 0.1), (2, 0.2)]
    assert sum(key.startswith("m/") for key in run.data.metrics) == 1200 and run.data.metrics["m/1199"] == 1199
    config = yaml.safe_load(artifact(client, run_id, "config.yaml", folder))
    assert config["optim"] == {"lr": 0.01, "decay": {"scope": "full"}}
    assert config["data"]["files"] == list(FILES) and config["eval"]["ks"] == [5, 20]
    assert "| mf    |    0.2000 |" in artifact(client, run_id, "results.md", folder)
    assert json.loads(artifact(client, run_id, "result.json", folder)) == {"recall@20": 0.2}


def test_default_sqlite_file_beside_the_run_folder(tmp_path, working_folder, store):
    run_id = record_a_run(tmp_path)
    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/runs/mlflow.db")
    check_the_run(client, run_id, tmp_path / "down")
    assert client.get_run(run_id).info.artifact_uri.startswith(f"file://{tmp_path}/runs/mlartifacts/")
    assert sorted(os.listdir(tmp_path / "runs")) == ["mlartifacts", "mlflow.db"]
    assert client.search_experiments(filter_string="name = 'distrec'")


def test_a_run_continues(tmp_path, working_folder, store):
    first = started(tmp_path)
    first.log_metrics({"loss": 3.0}, 1)
    first.finish("FAILED")
    second = started(tmp_path, first.run_id, config=NewerConfig(optim=Optim(lr=0.1)))
    client = MlflowClient(tracking_uri=second.uri)
    assert client.get_run(first.run_id).info.status == "RUNNING"
    second.log_metrics({"loss": 2.0}, 2)
    second.finish()
    run = client.get_run(first.run_id)
    assert second.run_id == first.run_id and run.info.status == "FINISHED"
    assert history(client, first.run_id, "loss") == [(1, 3.0), (2, 2.0)]
    assert run.data.params["optim.lr"] == "0.01" and run.data.params["new"] == "1"
    assert run.data.tags["changed_on_resume"] == "optim.lr: 0.01 -> 0.1"
    assert len(client.search_runs([run.info.experiment_id])) == 1
    with pytest.raises(UserError, match="has no run 0123456789abcdef to continue"):
        started(tmp_path, "0123456789abcdef")


def test_odd_values_and_names(tmp_path, working_folder, store):
    fields = {"a@b(c)": (str | None, None), "empty": (str, ""), "uml": (str, "ä|ö")}
    tracker = started(tmp_path, config=create_model("Odd", __base__=Section, **fields)())
    tracker.log_metrics({"nan": float("nan"), "inf": float("inf"), "ndcg@20 [tail 80%]": 0.5}, 0)
    tracker.finish("KILLED")
    run = MlflowClient(tracking_uri=tracker.uri).get_run(tracker.run_id)
    assert run.info.status == "KILLED" and run.data.params == {"a_at_b_c_": "None", "empty": "", "uml": "ä|ö"}
    assert run.data.metrics["ndcg_at_20 _tail 80__"] == 0.5 and len(run.data.metrics) == 3


@pytest.mark.long
def test_http_server_that_stops_during_the_run(tmp_path, working_folder, empty_store):
    port, warnings = free_port(), []
    (tmp_path / "server").mkdir()
    shutil.copy(empty_store, tmp_path / "server" / "server.db")
    with mlflow_server(tmp_path / "server", port) as uri:
        run_id = record_a_run(tmp_path, uri=uri)
        check_the_run(MlflowClient(tracking_uri=uri), run_id, tmp_path / "down")
        assert (tmp_path / "server" / "artifacts").is_dir() and not (tmp_path / "runs").exists()
        tracker = started(tmp_path, uri=uri, warn=warnings.append)
        abandoned = started(tmp_path, uri=uri, warn=lambda text: None)
        tracker.log_metrics({"loss": 3.0}, 1)
    start = time.monotonic()
    for step in (2, 3, 4):
        tracker.log_metrics({"loss": 3.0 / step}, step)
    tracker.log_table([{"model": "mf"}])
    assert len(warnings) == 1 and "fails; training continues" in warnings[0] and "refused" in warnings[0]
    abandoned.log_metrics({"loss": 1.0}, 1)
    abandoned.finish()  # must not raise
    assert time.monotonic() - start < 20
    with mlflow_server(tmp_path / "server", port) as uri:
        tracker.finish()
        client = MlflowClient(tracking_uri=uri)
        assert history(client, tracker.run_id, "loss") == [(1, 3.0), (2, 1.5), (3, 1.0), (4, 0.75)]
        assert client.get_run(tracker.run_id).info.status == "FINISHED"
        assert "mf" in artifact(client, tracker.run_id, "results.md", tmp_path / "down")
        assert client.get_run(abandoned.run_id).info.status == "RUNNING"
    assert len(warnings) == 2 and "works again" in warnings[1]


@pytest.mark.parametrize("uri", ["http://me:secret@127.0.0.1:{port}", "postgresql://me:secret@127.0.0.1:{port}/mlflow"])
def test_unreachable_server_is_an_immediate_error(tmp_path, working_folder, uri):
    start = time.monotonic()
    with pytest.raises(UserError, match="cannot record to MLflow at .*127.0.0.1.*refused") as caught:
        started(tmp_path, uri=uri.format(port=free_port()))
    assert "tracking.enabled=false" in str(caught.value) and "secret" not in str(caught.value)
    assert time.monotonic() - start < 15


def test_server_that_never_answers(tmp_path, working_folder, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        start = time.monotonic()
        with pytest.raises(UserError, match="[tT]imed out"):
            started(tmp_path, uri=f"http://127.0.0.1:{listener.getsockname()[1]}")
    assert time.monotonic() - start < 10


def test_unusable_stores_are_errors(tmp_path, working_folder, store):
    (tmp_path / "text.db").write_text("not a database" * 100)
    with pytest.raises(UserError, match="file is not a database"):
        started(tmp_path, uri=f"sqlite:///{tmp_path}/text.db")
    for uri in ("mlruns", "file:///tmp/mlruns", "sqlite://", "sqlite:///:memory:", ""):
        with pytest.raises(UserError, match="tracking.uri"):
            started(tmp_path, uri=uri)
    tracker = started(tmp_path)
    client = MlflowClient(tracking_uri=tracker.uri)
    client.delete_experiment(client.get_run(tracker.run_id).info.experiment_id)
    with pytest.raises(UserError, match="'distrec' is deleted"):
        started(tmp_path)


@pytest.mark.long
def test_creates_the_store_prints_nothing_and_restores_settings(tmp_path, working_folder):
    """Runs in a fresh process, where MLflow has not set up its loggers yet; warnings would go to standard error."""
    script = (
        "import os, sys, logging; from pathlib import Path; logging.basicConfig(level='INFO')\n"
        "before = {k for k in os.environ if k.startswith('MLFLOW_')}\n"
        "from distrec.tracking.config import TrackingConfig; from distrec.tracking import open_tracker\n"
        "assert 'mlflow' not in sys.modules\n"
        f"t = open_tracker(TrackingConfig(), Path({str(tmp_path / 'runs' / 'one')!r}))\n"
        "t.start(TrackingConfig(), {}, 'one'); t.log_metrics({'x': 1.0}, 1); t.finish()\n"
        "assert {k for k in os.environ if k.startswith('MLFLOW_')} - before <= {'MLFLOW_DISABLE_TELEMETRY'}\n"
        "from mlflow.telemetry.client import get_telemetry_client; assert get_telemetry_client() is None\n"
        "assert logging.getLogger('mlflow').level != logging.ERROR\n"
    )
    unset = ("PYTEST_CURRENT_TEST", "MLFLOW_DISABLE_TELEMETRY", "CI")
    environment = {k: v for k, v in os.environ.items() if k not in unset}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (tmp_path / "runs" / "mlflow.db").exists()


def test_disabled(tmp_path, working_folder):
    tracker = started(tmp_path, enabled=False)
    tracker.log_metrics({"loss": 1.0}, 1)
    tracker.finish()
    assert type(tracker) is Tracker and tracker.run_id is None and not (tmp_path / "runs").exists()


def test_warnings_go_to_the_log_by_default(tmp_path, working_folder, store, caplog):
    tracker = started(tmp_path)
    MlflowClient(tracking_uri=tracker.uri).delete_run(tracker.run_id)
    with caplog.at_level(logging.WARNING):
        tracker.log_metrics({"loss": 1.0}, 1)
        tracker.finish()
    assert [record.name for record in caplog.records] == ["distrec.tracking.mlflow"] * 2
