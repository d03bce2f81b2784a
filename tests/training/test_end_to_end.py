"""Whole runs on the Ray cluster of the tests: equal for any number of workers, and equal when interrupted.

A run takes seconds to start. A run of one worker, stopped by Ctrl-C and resumed, is compared in tests/cli/test_cli.py.
"""

import contextlib
import json
import shutil
import signal
from os import getpid, kill, truncate
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from mlflow import MlflowClient

from distrec.core.config import flat, parse
from distrec.core.errors import UserError, WorkerLost
from distrec.data.dataset import Part
from distrec.training.config import Config
from distrec.training.driver import train
from distrec.training.evaluate import evaluate
from tests.conftest import EPOCHS, changed, run_config

pytestmark = pytest.mark.timeout(240)


def test_the_result(whole, dataset):
    result, events = whole
    assert json.loads((result.folder / "result.json").read_text())["metrics"] == result.metrics
    assert set(result.metrics) == {"valid/recall@20", "valid/ndcg@20", "test/recall@20", "test/ndcg@20"}
    assert (result.workers, result.epochs, result.interactions) == (2, EPOCHS, dataset.manifest.train)
    assert result.fingerprint == dataset.manifest.fingerprint
    test_users = np.unique(dataset.interactions(Part.TEST, range(dataset.manifest.buckets))[0])
    assert (result.test_users, result.left_out_users) == (len(test_users), dataset.manifest.users - len(test_users))
    timing = result.timing
    assert len(timing.epoch_s) == EPOCHS and timing.train_s == sum(timing.epoch_s) > 0
    assert timing.total_s > timing.train_s + timing.eval_s + timing.first_batch_s > 0
    assert result.loss[0] > result.loss[1] > result.loss[-1]
    assert result.versions["torch"] == torch.__version__


def test_the_run_folder_and_the_events(whole, small, runs):
    result, events = whole
    saved = parse(Config, yaml.safe_load((result.folder / "config.yaml").read_text()))
    assert saved == run_config(small, runs, "whole")
    epochs = [event for event in events if event["kind"] == "epoch"]
    assert [event["epoch"] for event in epochs] == list(range(1, EPOCHS + 1))
    assert tuple(event["loss"] for event in epochs) == result.loss
    assert all(set(event["split"]) == {"wait", "look_up", "exchange", "compute", "update"} for event in epochs)
    assert any(event["kind"] == "step" for event in events)


def test_the_metrics_of_each_user(whole, dataset, tmp_path):
    """Training writes them beside the result, an evaluation of the checkpoint writes the same."""
    result, _ = whole
    trained = pq.read_table(result.folder / "test_users.parquet")
    assert trained.column_names == ["user", "recall@20", "ndcg@20"] and len(trained) == result.test_users
    ids = {user: index for index, user in enumerate(dataset.user_ids().to_pylist())}
    index_U = [ids[user] for user in trained["user"].to_pylist()]
    assert index_U == sorted(index_U)
    for name in ("recall@20", "ndcg@20"):
        assert np.mean(trained[name].to_numpy()) == pytest.approx(result.metrics[f"test/{name}"], abs=1e-9)
    file = tmp_path / "users.parquet"
    found = evaluate(result.folder, overrides=[f"eval.per_user={file}", "eval.bootstrap=20", "eval.metrics=all"])
    again = pq.read_table(file)
    assert again.select(trained.column_names).equals(trained) and "mrr@20" in again.column_names
    assert found.metrics["test/ndcg@20/low"] < found.metrics["test/ndcg@20"] < found.metrics["test/ndcg@20/high"]


def test_a_file_of_users_is_an_option_of_evaluate(small, runs):
    with pytest.raises(UserError, match="eval.per_user is an option of distrec evaluate"):
        train(run_config(small, runs, "per_user", eval={"per_user": "x.parquet"}))


def test_mlflow_records_the_run(whole):
    result, _ = whole
    client = MlflowClient(f"sqlite:///{result.folder.parent / 'mlflow.db'}")
    facts = json.loads((result.folder / "run.json").read_text())
    run = client.get_run(facts["mlflow_run"])
    saved = flat(parse(Config, yaml.safe_load((result.folder / "config.yaml").read_text())))
    assert run.data.params == {key: str(value) for key, value in saved.items()}
    assert run.info.status == "FINISHED"
    assert run.data.tags["fingerprint"] == result.fingerprint
    (data,) = run.inputs.dataset_inputs
    assert data.dataset.name == "planted" and result.fingerprint.startswith(data.dataset.digest)
    assert json.loads(data.dataset.profile)["train"] == result.interactions
    assert run.data.tags["version.ray"] == result.versions["ray"]
    assert [m.value for m in client.get_metric_history(facts["mlflow_run"], "train/loss")] == list(result.loss)
    assert run.data.metrics["test/ndcg_at_20"] == result.metrics["test/ndcg@20"]
    times = {f"time/{part}_s" for part in ("wait", "look_up", "exchange", "compute", "update")}
    assert {"train/interactions_per_s"} | times <= set(run.data.metrics)
    assert {a.path for a in client.list_artifacts(facts["mlflow_run"])} == {"config.yaml", "results.md", "result.json"}


def train_workers() -> list[int]:
    """Return the process ids of the Ray Train workers of the Ray that this process has started."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # the process has just ended
            if (
                b"RayTrainWorker" in (process / "cmdline").read_bytes()
                and parent(parent(int(process.name))) == getpid()
            ):
                found.append(int(process.name))
    return found


def parent(process: int) -> int:
    return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])


@pytest.mark.long
def test_a_run_that_lost_a_worker_resumes_on_more_workers(ray_cluster, whole, small, runs):
    def kill_a_worker(event):
        if event["kind"] == "epoch" and event["epoch"] == 2:
            workers = train_workers()
            assert len(workers) == 2
            kill(max(workers), signal.SIGKILL)

    config = run_config(small, runs, "killed", train={"stream": "thread"})
    with pytest.raises(WorkerLost, match="a worker was lost") as lost:
        train(config, on_event=kill_a_worker)
    assert lost.value.folder == str(config.run.dir) and not (Path(config.run.dir) / "result.json").exists()
    notes = []
    resumed = changed(config, run={"resume": True}, train={"workers": 3})
    result = train(resumed, on_event=notes.append)
    (text,) = [e["text"] for e in notes if e["kind"] == "note" and "resumed" in e["text"]]
    # The event of an epoch may precede the commit of its checkpoint; more epochs may pass before the worker is lost.
    assert 1 <= int(text.removeprefix("resumed after epoch ")) < EPOCHS
    assert result.metrics == pytest.approx(whole[0].metrics, abs=5e-4)
    assert result.loss == pytest.approx(whole[0].loss, rel=1e-5)
    assert (result.workers, len(result.timing.epoch_s)) == (3, EPOCHS)
    assert train(resumed) == result  # the run has ended: nothing runs again


@pytest.mark.slow  # tests/training/test_run_folder.py damages checkpoints in every way without a run
def test_with_a_truncated_newest_checkpoint_a_run_resumes_from_the_one_before(ray_cluster, whole, small, runs):
    folder, notes = runs / "truncated", []
    shutil.copytree(whole[0].folder, folder)
    (folder / "result.json").unlink()
    before, newest = sorted(path.parent for path in (folder / "checkpoints").glob("checkpoint_*/shard-00001-*"))
    shard = newest / "shard-00001-of-00002.pt"
    truncate(shard, shard.stat().st_size // 2)
    assert evaluate(folder, note=notes.append).epoch == EPOCHS - 1
    assert notes == [f"{newest.name} is damaged; using {before.name}, the one before"]
    config = run_config(small, runs, "truncated", run={"resume": True}, tracking={"enabled": False})
    result = train(config, on_event=notes.append)
    texts = [event["text"] for event in notes[1:] if event["kind"] == "note"]
    assert any(f"{newest} is damaged" in text and f"goes on from {before.name}" in text for text in texts)
    assert f"resumed after epoch {EPOCHS - 1}" in texts
    assert result.metrics == pytest.approx(whole[0].metrics, abs=5e-4)
    assert result.loss == pytest.approx(whole[0].loss, rel=1e-5)
    assert evaluate(folder).epoch == EPOCHS


@pytest.mark.long
def test_a_user_error_in_a_worker_is_raised_by_the_driver(ray_cluster, small, runs):
    sections = {"optim": {"rule": "sgd", "lr": 1e30}, "model": {"similarity": "dot"}, "loss": {"name": "bpr"}}
    config = run_config(small, runs, "diverged", workers=1, train={"stream": "thread"}, **sections)
    with pytest.raises(UserError, match="loss of epoch . is .*lower optim.lr"):
        train(config)


def test_resources_that_the_cluster_lacks_are_refused_before_the_start(ray_cluster, small, runs, tmp_path):
    with pytest.raises(UserError, match=r"train.device=cuda needs a GPU for each of 2 workers; the Ray cluster has 0"):
        train(run_config(small, runs, "cuda", train={"device": "cuda"}))
    with pytest.raises(UserError, match=r"train.workers=12 needs 18 CPUs .* the Ray cluster has 6"):
        train(run_config(small, runs, "many", workers=12))
    (tmp_path / "pairs.csv").write_text("user,item\n1,2\n1,3\n2,3\n")
    with pytest.raises(UserError, match="has no test part: hold out .* with data.test_fraction=0.2"):
        train(run_config(small, runs, "no-test", data={"source": str(tmp_path / "pairs.csv")}))


def test_held_out_users_without_training_are_refused_before_training(ray_cluster, small, runs, tmp_path):
    (tmp_path / "train.txt").write_text("0 0 1\n")
    (tmp_path / "test.txt").write_text("1 0\n2 1\n")
    with pytest.raises(UserError, match="no user has both training interactions and a test part"):
        train(run_config(small, runs, "cold", data={"source": str(tmp_path), "valid_fraction": 0}))


def test_a_prepared_folder_is_trained_on_and_split_keys_are_refused(ray_cluster, small, dataset, runs):
    words = {"source": str(dataset.path)}
    with pytest.raises(UserError, match=r"is prepared already: leave data.test_fraction out"):
        train(run_config(small, runs, "again", data={**words, "test_fraction": 0.5}))
    with pytest.raises(UserError, match="train.workers=13 is more than the data's 12 buckets"):
        train(run_config(small, runs, "again", 13, data=words))


@pytest.mark.slow
def test_a_finished_run_is_extended_and_stops_early(ray_cluster, small, runs):
    """Two workers write the best epoch, one evaluates it; the run is then as one that was longer from the start."""
    settings = {"optim": {"lr": 0.1}, "train": {"epochs": 40, "patience": 2, "stream": "thread"}}
    longer = run_config(small, runs, "longer", **settings)
    whole = train(longer)
    assert whole.tested_epoch == whole.epochs - 2 < 38
    config = run_config(small, runs, "extended", **changed_epochs(settings, 2))
    first = train(config)
    assert (first.epochs, first.tested_epoch) == (2, 2) and train(changed(config, run={"resume": True})) == first
    extended = train(run_config(small, runs, "extended", run={"resume": True}, **changed_epochs(settings, 40)))
    assert extended.metrics == whole.metrics and extended.loss == whole.loss
    assert [path.name for path in (extended.folder / "best").iterdir()] == [f"epoch_{whole.tested_epoch:06d}"]
    assert json.loads((extended.folder / "before_result.json").read_text())["metrics"] == first.metrics
    found = evaluate(extended.folder)
    assert (found.best, found.finished, found.epoch) == (True, True, whole.tested_epoch)
    assert found.metrics["test/ndcg@20"] == pytest.approx(whole.metrics["test/ndcg@20"], abs=1e-6)


def changed_epochs(settings: dict, epochs: int) -> dict:
    return {**settings, "train": {**settings["train"], "epochs": epochs}}
