"""Studies: what a file may hold, the runs that are trained and repeated, and the table against its definition."""

import json
import os
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from unittest.mock import Mock

import pyarrow.parquet as pq
import pytest
from scipy import stats

from distrec import UserError, study
from distrec.data.merge import refit_data
from distrec.tracking.config import TrackingConfig
from distrec.training.config import load_config
from distrec.tuning import studies
from distrec.tuning.study_cells import check_metrics, make_cells
from distrec.tuning.study_config import load_study
from distrec.tuning.study_recorder import StudyRecorder
from distrec.tuning.study_rows import explanation, text_rows
from distrec.tuning.study_search import cell_search
from distrec.tuning.study_table import CellResult, check_comparable, make_table
from distrec.tuning.trial import run_trial
from tests.conftest import SMALL, changed

STUDIES = sorted((Path(__file__).parents[2] / "configs" / "studies").glob("*.yaml"))
CELLS = {
    "loss": {"ssm": {"loss.name": "ssm", "loss": {"temperature": 0.2}}, "bpr": {"loss.name": "bpr"}},
    "sampling.negatives": [4, 40],
}


def make(cache: Path, **changes) -> dict:
    """Return a study of four cells of one epoch, on small data."""
    base = {**SMALL, "data": {**SMALL["data"], "cache": str(cache)}, "train": {**SMALL["train"], "epochs": 1}}
    base = {**base, "tracking": {"enabled": False}, "loss": {"name": "ssm", "temperature": 0.3}}
    return {"name": "small", "base": base, "cells": CELLS, "seeds": [0, 3], **changes}


def events_of(given: dict, folder: Path, **options) -> tuple:
    """Run a study. Return its result and the events of runs."""
    events = []
    result = study(given, folder=folder, on_event=events.append, **options)
    return result, [event for event in events if event["kind"] == "run"]


@pytest.fixture(scope="module")
def finished(cache, empty_store, tmp_path_factory):
    """Run the small study, recorded in MLflow. Return what it held, its result and the store."""
    folder = tmp_path_factory.mktemp("study")
    store = f"sqlite:///{folder / 'mlflow.db'}"
    (folder / "mlflow.db").write_bytes(empty_store.read_bytes())
    figures = [{"x": "sampling.negatives", "y": ["ndcg@20", "epochs"]}, {"x": "recall@20", "y": "ndcg@20"}]
    given = make(cache, figures=figures, ratios={"r/n": ["recall@20", "ndcg@20"]})
    given["base"]["tracking"] = {"uri": store}
    result, events = events_of(given, folder / "study")
    assert [event["done"] for event in events] == list(range(1, 9)) and not result.failed
    return given, result, store


def test_cells_are_the_cross_product(cache):
    cells = make_cells(load_study(make(cache)), ["optim.lr=0.5"])
    assert [cell.labels["loss"] for cell in cells] == ["ssm", "ssm", "bpr", "bpr"]
    assert [cell.config.sampling.negatives for cell in cells] == [4, 40, 4, 40]
    assert cells[0].config.loss.temperature == 0.2 and cells[2].config.loss.name == "bpr"  # without a temperature
    assert all(cell.config.optim.lr == 0.5 and cell.config.train.workers == 1 for cell in cells)
    assert cells[1].label == "loss=ssm, sampling.negatives=40"


def test_sizes(cache):
    small = {"base": {"train.epochs": 2}, "cells": {"sampling.negatives": [7]}, "seeds": [9]}
    given = make(cache, small=small)
    assert [len(make_cells(load_study(given, size))) for size in ("full", "small")] == [4, 2]
    found = load_study(given, "small")
    assert (found.seeds, found.name, make_cells(found)[0].config.train.epochs) == ((9,), "small_small", 2)
    with pytest.raises(UserError, match="no small size"):
        load_study(make(cache), "small")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metric": ["ndcg@20"]}, "unknown key 'metric'; nearest known: test.metric, metrics"),
        ({"figures": [{"x": "loss", "serie": ["loss"]}]}, "figures.0.serie"),
        ({"cells": {"optim.lrate": [0.1]}}, "cell optim.lrate=0.1: unknown key 'optim.lrate'; nearest known: optim.lr"),
        ({"cells": {"optim.lr": [0.1, -1]}}, "cell optim.lr=-1: optim.lr: Input should be greater than 0"),
        ({"cells": {"optim.lr": 0.1}}, "optim.lr: give a list of values, or groups of keys"),
        ({"cells": {"loss": {"a": {"loss.name": "bpr"}, "b": 3}}}, "loss: give a list of values, or groups of keys"),
        ({"cells": {"optim.lr": [0.1, 0.1]}}, "a value is given twice"),
        ({"cells": {}}, "cells is empty"),
        ({"cells": {**CELLS, "loss.name": ["ssm"]}}, "both give loss.name"),
        ({"cells": {"run.seed": [1, 2]}}, "a study sets run.seed itself"),
        ({"seeds": [1, 1]}, "a seed is given twice"),
        ({"seeds": []}, "seeds"),
        ({"metrics": ["ndgc@20"]}, r"no cell has the metric or axis 'ndgc@20'; nearest known: ndcg@20"),
        ({"metrics": ["ndcg@20/popular"]}, "eval.strata"),
        ({"test": {"reference": {"loss": "hinge"}}}, "no cell has loss=hinge; of loss: ssm, bpr"),
        ({"test": {"reference": {"lss": "ssm"}}}, "no cell has lss=ssm; axes: loss, sampling.negatives"),
        ({"cells": {"data.split_seed": [0, 1]}}, "have different data or splits"),
        ({"cells": {"eval.per_user": [None, "users.parquet"]}}, "eval.per_user is an option of distrec evaluate"),
        ({"search": {"optim.lrs": {"choice": [1]}}}, "unknown key 'optim.lrs'"),
        ({"search": {"sampling.negatives": {"choice": [1]}}}, "search: sampling.negatives is given by the cell"),
    ],
)
def test_mistakes(cache, tmp_path, changes, message):
    """No run is trained before a mistake is found."""
    with pytest.raises(UserError, match=message):
        study(make(cache, **changes), folder=tmp_path / "study")
    assert not (tmp_path / "study" / "runs").exists()


def test_a_refit_that_its_schedule_forbids(cache, tmp_path):
    """It is refused before the search, whatever `tune.refit_seeds` is."""
    (cell, *_) = make_cells(load_study(make(cache)), ["optim.schedule.name=plateau", "train.watch=ndcg@20"])
    for seeds in (0, 2):
        search = {"tune.refit_seeds": seeds, "optim.lr": {"choice": [0.1]}}
        with pytest.raises(UserError, match="cell loss=ssm, .*: search: optim.schedule.name=plateau follows"):
            cell_search(search, cell, tmp_path, "data", None)


def test_an_override_of_a_key_that_varies(cache, tmp_path):
    with pytest.raises(UserError, match="sampling.negatives varies between the cells"):
        study(make(cache), ["sampling.negatives=3"], folder=tmp_path / "study")


def test_a_folder_with_something_else(cache, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="holds something else than a study"):
        study(make(cache), folder=tmp_path)


def test_a_study_killed_at_its_start_goes_on(cache, tmp_path, monkeypatch):
    folder, given = tmp_path / "study", make(cache, cells={"optim.lr": [0.01]}, seeds=[0])

    def killed(*arguments):
        (folder / "mlflow.json").write_text("{}")
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(StudyRecorder, "start", killed)
        study(given, folder=folder)
    assert len(events_of(given, folder)[1]) == 1


def test_a_study_that_is_not_recorded_leaves_no_id(cache, tmp_path):
    recorder = StudyRecorder(TrackingConfig(enabled=False), tmp_path, print)
    recorder.start(load_study(make(cache)), "fingerprint", tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_best_are_of_metrics_to_maximise(finished):
    _, result, _ = finished
    metrics = ("epoch_s", "train_s", "best_epoch", "valid/ndcg@20")
    table = make_table(result.table.study.model_copy(update={"metrics": metrics}), result.table.cells)
    assert table.best() == {"valid/ndcg@20": max(table.summary(c, "valid/ndcg@20").mean for c in table.cells)}
    assert table.comparisons == {} and len(explanation(table)) == 1  # no cell has the best duration
    assert result.table.best().keys() == {"ndcg@20", "recall@20"} and len(result.table.comparisons) == 3


def test_the_table_is_of_the_single_runs(small, finished, tmp_path):
    """Each run equals one trained by itself; mean, deviation and p are those of the definition."""
    given, result, _ = finished
    rows = {(row["loss"], row["sampling.negatives"]): row for row in result.rows}
    alone, users = {}, {}
    for loss in ("ssm", "bpr"):
        options = {"name": loss} | ({"temperature": 0.2} if loss == "ssm" else {})
        for seed in (0, 3):
            folder = tmp_path / f"{loss}{seed}"
            run = {"dir": str(folder), "seed": seed}
            config = changed(small, loss=options, sampling={"negatives": 40}, train={"epochs": 1}, run=run)
            alone.setdefault(loss, []).append(run_trial(config).metrics["test/ndcg@20"])
            column = pq.read_table(folder / "test_users.parquet")["ndcg@20"].to_numpy()
            users[loss] = users.get(loss, 0) + column / 2
        row = rows[loss, "40"]
        assert row["ndcg@20"] == pytest.approx(statistics.fmean(alone[loss]), rel=1e-12)
        assert row["ndcg@20 sd"] == pytest.approx(statistics.stdev(alone[loss]), rel=1e-12)
        assert row["seeds"] == 2 and row["error"] is None
    best, other = sorted(alone, key=lambda loss: -sum(alone[loss]))
    assert rows[other, "40"]["reference"] == f"loss={best}, sampling.negatives=40"
    assert rows[other, "40"]["p"] == pytest.approx(float(stats.ttest_rel(users[best], users[other]).pvalue), rel=1e-9)
    assert rows[best, "40"]["p"] is None


def test_files(finished):
    _, result, _ = finished
    folder = result.folder
    table, page = (folder / "table.md").read_text(), (folder / "report.html").read_text()
    assert "corrected for 3 comparisons (Holm)" in table and "hardware" in table and "torch" in table
    assert page.count("<svg") == 2 and page.count("<table>") == 2
    assert "<script" not in page and 'src="http' not in page and 'href="http' not in page
    assert pq.read_table(folder / "cells.parquet").to_pylist() == result.rows
    runs = pq.read_table(folder / "runs.parquet").to_pylist()
    assert len(runs) == 8 and all(Path(run["folder"]).exists() for run in runs)
    assert all(run["r/n"] == pytest.approx(run["recall@20"] / run["ndcg@20"]) for run in runs)
    assert sorted(file.name for file in folder.glob("figure_*.png")) == ["figure_1.png", "figure_2.png"]


def test_mlflow(finished):
    from mlflow import MlflowClient

    given, result, store = finished
    client = MlflowClient(tracking_uri=store)
    runs = client.search_runs([client.get_experiment_by_name("distrec").experiment_id])
    parent = json.loads((result.folder / "mlflow.json").read_text())["parent"]
    children = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent]
    assert len(runs) == 9 and len(children) == 8
    seen = sorted(run.data.metrics["test/ndcg_at_20"] for run in children)
    assert seen == sorted(run["ndcg@20"] for run in pq.read_table(result.folder / "runs.parquet").to_pylist())
    assert all("valid/ndcg_at_20" in run.data.metrics and run.info.status == "FINISHED" for run in children)
    names = {file.path for file in client.list_artifacts(parent)}
    assert {"table.md", "report.html", "cells.parquet", "figure_1.png", "results.md"} <= names


def test_only_what_is_new_is_trained(finished):
    given, result, _ = finished
    again, events = events_of(given, result.folder)
    assert events == [] and again.rows == result.rows
    cells = {"loss": CELLS["loss"], "sampling.negatives": [40, 10]}
    changed, events = events_of({**given, "cells": cells}, result.folder)
    assert {(event["cell"], event["seed"]) for event in events} == {
        (f"loss={loss}, sampling.negatives=10", seed) for loss in ("ssm", "bpr") for seed in (0, 3)
    }
    kept = {row["loss"]: row["ndcg@20"] for row in changed.rows if row["sampling.negatives"] == "40"}
    assert kept == {row["loss"]: row["ndcg@20"] for row in result.rows if row["sampling.negatives"] == "40"}
    # What a run does not compute with does not count: its threads, the path of the cache.
    _, events = events_of({**given, "base": {**given["base"], "train.threads": 2}}, result.folder)
    assert events == []


def test_a_cell_that_fails(cache, tmp_path):
    """The rest goes on, and the table says so."""
    groups = {"good": {"optim.lr": 0.01}, "bad": {"optim.rule": "sgd", "optim.lr": 1e30, "model.similarity": "dot"}}
    result, events = events_of(make(cache, cells={"rate": groups}), tmp_path / "study")
    assert len(events) == 4 and [event["error"] is None for event in events] == [True, False, True, False]
    assert list(result.failed) == ["rate=bad, seed 0", "rate=bad, seed 3"]
    good, bad = text_rows(result.table)
    assert "±" in good["ndcg@20"] and bad["ndcg@20"] == "" and bad["note"].startswith("0 of 2 seeds: ")
    assert (tmp_path / "study" / "report.html").exists()
    with pytest.raises(UserError, match="no run has a result; the first said"):
        study(make(cache, cells={"rate": {"bad": groups["bad"]}}), folder=tmp_path / "none")


def test_one_seed_has_no_spread_and_seeds_may_be_missing(finished):
    given, result, _ = finished
    single, events = events_of({**given, "seeds": [3]}, result.folder)
    assert events == [] and all(row["ndcg@20 sd"] is None for row in single.rows)
    assert "no spread" in explanation(single.table)[0]
    cells = [CellResult(c.cell, {3: c.results[3]}, {0: "lost"}) for c in result.table.cells]
    row = text_rows(type(result.table)(result.table.study, cells, {}))[0]
    assert row["note"] == "1 of 2 seeds: lost" and "±" not in row["ndcg@20"]


def test_runs_of_different_data_are_not_compared(finished):
    _, result, _ = finished
    first, *others = result.table.cells
    changed = {seed: run.model_copy(update={"fingerprint": "another"}) for seed, run in first.results.items()}
    check_comparable(result.table.cells)
    with pytest.raises(UserError, match=r"\(seed 0\) and .* have different data or splits"):
        check_comparable([CellResult(first.cell, changed), *others])


def test_one_user(tmp_path):
    """A user alone gives a table, without a test."""
    (tmp_path / "one.csv").write_text("user,item\n" + "".join(f"u,{item}\n" for item in range(40)))
    data = {"source": str(tmp_path / "one.csv"), "test_fraction": 0.2, "buckets": 2, "cache": str(tmp_path)}
    given = make(tmp_path, cells={"optim.lr": [0.01, 0.1]}, seeds=[0])
    given["base"] = {**given["base"], "data": data, "sampling.reject": False, "eval.k": 5}
    given["metrics"] = ["recall@5"]
    result, _ = events_of(given, tmp_path / "study")
    assert all(row["p"] is None for row in result.rows) and not result.failed
    assert any("No tests" in line for line in explanation(result.table))


@pytest.mark.timeout(200)
@pytest.mark.long
def test_killed_in_the_middle(cache, finished, tmp_path):
    """A killed study goes on: runs that were finished are not repeated, and the table is that of the whole one."""
    given, result, _ = finished
    given = {**given, "base": {**given["base"], "tracking": {"enabled": False}}}
    folder, script = tmp_path / "study", tmp_path / "script.py"
    script.write_text(f"from distrec import study\nstudy({given!r}, folder={str(folder)!r})\n")
    path = os.pathsep.join(filter(None, [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH")]))
    process = subprocess.Popen([sys.executable, script], env={**os.environ, "PYTHONPATH": path})
    deadline = time.monotonic() + 120
    while len(done := list(folder.glob("runs/*/result.json"))) < 2:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    times = {file: file.stat().st_mtime_ns for file in done}
    again, events = events_of(given, folder)
    assert 0 < len(events) <= 6 and {file: file.stat().st_mtime_ns for file in done} == times
    figures = [{key: row[key] for key in ("ndcg@20", "recall@20 sd", "p corrected")} for row in again.rows]
    assert figures == [{key: row[key] for key in ("ndcg@20", "recall@20 sd", "p corrected")} for row in result.rows]


@pytest.mark.timeout(200)
@pytest.mark.long
def test_runs_side_by_side_are_the_same(cache, finished, tmp_path):
    given, result, _ = finished
    given = {**given, "base": {**given["base"], "tracking": {"enabled": False}}}
    other, events = events_of(given, tmp_path / "study", parallel=2)
    assert len(events) == 8 and [row["ndcg@20"] for row in other.rows] == [row["ndcg@20"] for row in result.rows]


@pytest.mark.timeout(200)
@pytest.mark.long
def test_cells_that_are_searches(ray_cluster, cache, tmp_path, monkeypatch):
    """Each cell is searched, and its best configuration trained on training and validation part with each seed."""
    search = {"tune": {"sampler": "grid", "stop": "none"}, "optim.lr": {"grid": [1e-5, 0.05]}}
    given = make(cache, cells={"loss": CELLS["loss"]}, search=search)
    given["base"]["train"]["epochs"] = 2
    prepared = Mock(wraps=refit_data)
    monkeypatch.setattr(studies, "refit_data", prepared)
    result, events = events_of(given, tmp_path / "study")
    assert len(events) == 4 and [row["found"] for row in result.rows] == ["optim.lr=0.05, train.epochs=2"] * 2
    configs = [load_config(file) for file in (tmp_path / "study").glob("runs/*/config.yaml")]
    assert len(configs) == 4 and all(c.data.valid_fraction == 0 and c.optim.lr == 0.05 for c in configs)
    assert prepared.call_count == 1  # hashes the source: not for each cell and seed
    again, events = events_of(given, tmp_path / "study")
    assert events == [] and again.rows == result.rows


@pytest.mark.parametrize("file", STUDIES, ids=lambda file: file.stem)
def test_the_studies_that_ship(file, tmp_path):
    """Both sizes load; the header names paper, table or figure, and what is expected."""
    header = " ".join(line for line in file.read_text().splitlines() if line.startswith("#"))
    assert any(paper in header for paper in ("PRISM", "SimCE", "MML", "MINE")) and "xpected: " in header
    assert any(word in header for word in ("Table", "Figure"))
    for size, source in (("full", "gowalla"), ("small", "ml-100k")):
        config = load_study(file, size)
        cells = make_cells(config)
        check_metrics(config, cells)
        assert len(cells) > 1 and config.figures and config.base["data.source"].startswith(source)
        if config.search is not None:
            searches = [cell_search(config.search, cell, tmp_path, "data", None) for cell in cells]
            assert len({search.run.dir for search in searches}) == len(cells)
