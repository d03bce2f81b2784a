"""Whole searches on a cluster: refit, MLflow, figures; trials that raise, diverge and are killed; a killed driver."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest
import yaml

from distrec import tune
from distrec.cli.main import main
from distrec.core.errors import UserError
from distrec.core.registry import import_modules
from distrec.data.prepare import prepare
from distrec.losses import losses
from distrec.training.config import Config, load_config
from distrec.tuning.folder import SearchFolder
from distrec.tuning.journal import Records
from distrec.tuning.search_figures import search_figures
from distrec.tuning.trial_table import search_table
from tests.conftest import SMALL, changed

SPACE = {"optim.lr": {"log_uniform": [1e-3, 1e-1]}, "loss.temperature": {"choice": [0.1, 0.2, 0.3]}}


def search_config(small, folder, **sections) -> Config:
    train = {"epochs": 3, **sections.pop("train", {})}
    return changed(small, run={"dir": str(folder)}, train=train, **sections)


@pytest.fixture(scope="module")
def found(ray_cluster, small, empty_store, tmp_path_factory):
    """Search once, with a trial's process killed at its second epoch. Return the result, the events, and the store."""
    folder = tmp_path_factory.mktemp("search") / "s"
    store = folder.parent / "mlflow.db"
    store.write_bytes(empty_store.read_bytes())
    events, killed = [], []

    def listen(event):
        events.append(event)
        if event["kind"] == "report" and not killed:
            for lock in folder.glob("trials/*/run.lock"):  # names the process that holds it
                killed.append(int(lock.read_text().split()[1]))
                os.kill(killed[0], signal.SIGKILL)
                break

    config = search_config(small, folder)
    result = tune(config, SPACE, on_event=listen, trials=5, sampler="random", stop="none", refit_seeds=2)
    assert killed, "no trial was running: the test would show less"
    return result, events, f"sqlite:///{store}"


@pytest.mark.timeout(280)
@pytest.mark.long
def test_each_trial_ends_once_though_one_was_killed(found):
    result, events, _ = found
    lines = [json.loads(line) for line in (result.folder / "journal.jsonl").read_text().splitlines()]
    ends = [line["trial"] for line in lines if "reason" in {**line, **line.get("end", {})}]
    assert len(ends) == len(set(ends)) == 5 + 2
    assert [(t.reason, t.epochs) for t in result.trials] == [("finished", 3)] * 5
    epochs = [(line["trial"], line["epoch"]) for line in lines if line["kind"] == "report"]
    assert len(epochs) == len(set(epochs))


def test_the_winner_is_refitted_on_training_and_validation_part_and_tested(found, small):
    result, _, _ = found
    assert result.value == max(t.best("ndcg@20")[1] for t in result.trials)
    for record in Records(result.folder / "journal.jsonl").refits:
        run = json.loads((SearchFolder(result.folder).trial(record.name) / "run.json").read_text())
        assert run["fingerprint"] == prepare(small.data.model_copy(update={"valid_fraction": 0})).manifest.fingerprint
    assert len(result.metrics) == 2 and result.metrics[0] != result.metrics[1]
    assert all(set(m) == {"test/recall@20", "test/ndcg@20"} for m in result.metrics)
    assert not any("test/" in key for t in result.trials for r in t.reports for key in r["metrics"])
    best = load_config(result.folder / "best.yaml")
    assert (best.train.epochs, best.data.valid_fraction) == (result.epochs, 0)
    assert best.optim.lr == result.values["optim.lr"]


def test_the_folder_keeps_what_was_found_without_checkpoints_of_trials(found):
    result, _, _ = found
    rows = search_table(result.folder)
    assert [row["ended"] for row in rows] == ["finished"] * 5 and rows[0]["ndcg@20"] == result.value
    assert set(search_figures(result.folder)) == {"best_so_far", "parallel_coordinates", "slices", "importance"}
    assert len(list((result.folder / "figures").glob("*.png"))) == 4
    assert not list((result.folder / "trials").glob("*/checkpoints"))
    assert len(list((result.folder / "refits").glob("*/checkpoints"))) == 2


def test_mlflow_has_a_parent_and_a_child_for_each_trial(found):
    from mlflow import MlflowClient

    result, _, uri = found
    client = MlflowClient(tracking_uri=uri)
    runs = client.search_runs([client.get_experiment_by_name("distrec").experiment_id])
    (parent,) = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    children = {run.info.run_name: run for run in runs if run is not parent}
    assert all(run.data.tags["mlflow.parentRunId"] == parent.info.run_id for run in children.values())
    assert {run.info.status for run in runs} == {"FINISHED"} and len(children) == 7
    trial = result.trials[1]
    assert float(children["0001"].data.params["optim.lr"]) == trial.values["optim.lr"]
    history = client.get_metric_history(children["0001"].info.run_id, "valid/ndcg_at_20")
    assert [(point.step, point.value) for point in history] == trial.curve("ndcg@20")
    files = {file.path for file in client.list_artifacts(parent.info.run_id)}
    assert {"best.yaml", "results.md", "slices.png", "parallel_coordinates.png", "importance.png"} <= files
    assert parent.data.metrics["valid/ndcg_at_20"] == result.value


def test_the_page_of_a_search(found, tmp_path):
    result, _, _ = found
    page = (result.folder / "report.html").read_text()
    assert page.count("<svg") == 4 and "5 trials: 5 finished." in page and not re.search(r"(src|href)=.?http", page)
    assert f"Best validation ndcg@20: {result.value:.4f}" in page
    assert all(record.name in page for record in result.trials)
    assert all(f"<td>{metrics['test/ndcg@20']:.4f}</td>" in page for metrics in result.metrics)
    main(["report", str(result.folder), "--out", str(tmp_path / "again.html")])
    assert (tmp_path / "again.html").read_text().count("<svg") == 4
    with pytest.raises(SystemExit) as exit_code:
        main(["report", str(result.folder), str(result.folder), "--out", str(tmp_path / "b.html")])
    assert exit_code.value.code == 2 and not (tmp_path / "b.html").exists()


def test_a_finished_search_is_not_run_again(found, small):
    result, _, _ = found
    config = changed(search_config(small, result.folder), run={"resume": True})
    again = tune(config, SPACE, trials=5, sampler="random", stop="none", refit_seeds=2)
    assert (again.values, again.metrics) == (result.values, result.metrics)
    with pytest.raises(UserError, match="cannot resume .* with another configuration: space was"):
        tune(config, {**SPACE, "optim.lr": {"uniform": [0.1, 0.2]}}, trials=5, sampler="random", stop="none")


@pytest.fixture
def forgotten():
    """Forget the loss of the test at its end: other tests run over all losses."""
    yield
    losses.pop("failing", None)
    sys.modules.pop("tests.tuning.failing_loss", None)


@pytest.mark.timeout(200)
@pytest.mark.long
def test_trials_that_raise_or_diverge_and_the_rest_goes_on(ray_cluster, small, tmp_path, forgotten):
    config = search_config(small, tmp_path / "s", tracking={"enabled": False}, model={"similarity": "dot"})
    config = changed(config, run={"imports": ["tests.tuning.failing_loss"]})
    import_modules(config.run.imports)
    space = {
        "loss.name": {"choice": ["failing", "mse", "bpr"]},
        "optim.lr": {"choice": [1e-2, 1e30], "when": {"loss.name": "mse"}},
        "optim.rule": {"choice": ["sgd"]},
    }
    result = tune(config, space, sampler="grid", stop="none", refit_seeds=0)
    reasons = {(t.values["loss.name"], t.values.get("optim.lr")): t.reason for t in result.trials}
    assert reasons.pop(("failing", None)) == "failed" and reasons.pop(("mse", 1e30)) == "diverged"
    assert set(reasons.values()) == {"finished"} and len(reasons) == 2
    (failed,) = [t for t in result.trials if t.reason == "failed"]
    assert failed.end["text"] == "ZeroDivisionError: a bug in a loss"


def test_what_can_never_start(ray_cluster, small, tmp_path):
    config = search_config(small, tmp_path / "s", tracking={"enabled": False})
    with pytest.raises(UserError, match="tune.resources.cpu=400: the Ray cluster has 6 CPUs, so no trial could ever"):
        tune(config, SPACE, resources={"cpu": 400})
    with pytest.raises(UserError, match="tune.resources.gpu=1: the Ray cluster has 0 GPUs"):
        tune(config, SPACE, resources={"gpu": 1})
    with pytest.raises(UserError, match="set data.valid_fraction=0.1 or data.valid"):
        tune(changed(config, data={"valid_fraction": 0}), SPACE)
    with pytest.raises(UserError, match="eval.per_user is an option of distrec evaluate"):
        tune(changed(config, eval={"per_user": "users.parquet"}), SPACE)
    assert not (tmp_path / "s").exists()  # nothing has started


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_killed_driver_and_ctrl_c(small, tmp_path):
    """The search ends with the trials of an undisturbed one; Ctrl-C prints the command that resumes it."""
    tree = {**SMALL, "data": {**SMALL["data"], "cache": str(small.data.cache)}, "tracking": {"enabled": False}}
    tree["train"] = {**tree["train"], "epochs": 4}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(tree))
    space = {"tune": {"trials": 5, "sampler": "random", "stop": "none"}, **SPACE}
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(space))
    command = [sys.executable, "-m", "distrec.cli.main", "tune", "run.yaml", "s.yaml"]

    def start(*words):
        process = subprocess.Popen(
            [*command, *words], cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
            start_new_session=True, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )  # fmt: skip
        return process

    whole = start("run.dir=whole")
    assert whole.wait(200) == 0
    journal = tmp_path / "killed/journal.jsonl"
    process = start("run.dir=killed")
    for reports, stop in ((3, signal.SIGKILL), (8, signal.SIGINT)):
        while not journal.exists() or journal.read_text().count('"report"') < reports:
            time.sleep(0.05)
            assert process.poll() is None
        process.send_signal(stop)
        error = process.communicate(timeout=60)[1]
        if stop == signal.SIGINT:
            assert process.returncode == 130
            assert "distrec tune run.yaml s.yaml run.dir=" in error and "run.resume=true" in error
        process = start("run.dir=killed", "run.resume=true")
    assert process.wait(200) == 0
    undisturbed, resumed = (
        {r.name: (r.values, [e["metrics"] for e in r.reports if "metrics" in e], r.end) for r in records.values()}
        for records in (Records(tmp_path / name / "journal.jsonl") for name in ("whole", "killed"))
    )
    assert resumed == undisturbed
    ends = [json.loads(line)["trial"] for line in journal.read_text().splitlines() if '"reason"' in line]
    assert len(ends) == len(set(ends)) == 6
