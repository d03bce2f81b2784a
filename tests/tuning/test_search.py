"""The search as a state machine, without a cluster: budgets, stops, failures, refits, and a resume after any event."""

import math
import shutil

import pytest

from distrec.core.config import parse, with_values
from distrec.tuning.config import SearchConfig
from distrec.tuning.folder import SearchFolder
from distrec.tuning.journal import Journal, Records
from distrec.tuning.search import Search
from distrec.tuning.space import make_space

EPOCHS = 6
SPACE = {
    "optim.lr": {"log_uniform": [1e-3, 1e-1]},
    "loss.temperature": {"quantised": [0.1, 0.4, 0.1]},
    "optim.schedule.name": {"choice": ["constant", "cosine"]},
}
GRID = {"loss.temperature": SPACE["loss.temperature"], "optim.schedule.name": SPACE["optim.schedule.name"]}


def configured(space=SPACE, **tune) -> SearchConfig:
    tree = {"train": {"epochs": EPOCHS, "workers": 1}, "space": space, "tune": {"trials": 8, "stop": "none", **tune}}
    return parse(SearchConfig, tree)


def opened(config, folder) -> Search:
    folder.mkdir(exist_ok=True)
    journal = Journal(folder / "journal.jsonl")
    return Search(config, make_space(config, config.space), SearchFolder(folder), journal)


def value(tree, epoch) -> float:
    """Return the metric of a made-up training: best at a rate of 0.01 and temperature 0.2, rising with the epochs."""
    lr, temperature = tree.get("optim", {}).get("lr", 1e-3), tree["loss"]["temperature"]
    return math.exp(-abs(math.log10(lr) + 2) - abs(temperature - 0.2)) * (1 - 0.5**epoch)


def trained(search: Search, job, epochs=EPOCHS) -> bool:
    """Report the epochs of a training from the first, as after any resume; return whether it was not stopped."""
    for epoch in range(1, min(epochs, job.tree["train"]["epochs"]) + 1):
        metrics = {} if job.name.startswith("refit") else {"metrics": {"ndcg@20": value(job.tree, epoch)}}
        report = {"epoch": epoch, "epochs": job.tree["train"]["epochs"], "loss": 1.0, "seconds": 1.0, **metrics}
        if search.report(job.name, report):
            return False
    return True


def run(search: Search) -> Records:
    """Run a search to its end, one trial after the other."""
    while not search.is_over:
        job = search.next_job()
        if job is None:
            break
        if trained(search, job):
            search.end(job.name, {"reason": "finished", "metrics": {"test/ndcg@20": value(job.tree, EPOCHS)}})
    search.journal.close()
    return search.journal.records


def summary(records: Records) -> dict:
    return {r.name: (r.values, [(e["epoch"], e.get("metrics")) for e in r.reports], r.end) for r in records.values()}


@pytest.mark.parametrize(
    "tune",
    [
        {"sampler": "random"},
        {"sampler": "grid", "space": GRID},
        {"sampler": "tpe", "stop": "asha"},
        {"sampler": "tpe", "stop": "median", "refit_seeds": 3},
    ],
    ids=lambda tune: f"{tune['sampler']}-{tune.get('stop', 'none')}",
)
@pytest.mark.long
def test_a_search_killed_after_any_line_ends_as_the_undisturbed_one(tmp_path, tune):
    """Every trial ends once, no epoch is recorded twice; one trial at a time, so that also asha and tpe repeat."""
    config = configured(**tune)
    whole = summary(run(opened(config, tmp_path / "whole")))
    assert len([name for name in whole if not name.startswith("refit")]) == 8
    assert len(whole) == 8 + config.tune.refit_seeds and all(end for _, _, end in whole.values())
    lines = (tmp_path / "whole/journal.jsonl").read_bytes().splitlines(keepends=True)
    for count in range(0, len(lines), 2):
        folder = tmp_path / "killed"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        (folder / "journal.jsonl").write_bytes(b"".join(lines[:count]) + b'{"kind"')
        assert summary(run(opened(config, folder))) == whole
        again = (folder / "journal.jsonl").read_bytes().splitlines()
        assert len(again) == len(lines) and sum(b'"reason"' in line for line in again) == len(whole)


def test_asha_stops_most_trials_and_finds_the_same_region(tmp_path):
    records = run(opened(configured(trials=27, stop="asha"), tmp_path))
    stopped = [record for record in records.trials if record.reason == "asha"]
    best = max(records.trials, key=lambda record: record.best("ndcg@20")[1])
    assert 12 < len(stopped) < 27 and all(record.epochs in (1, 3) for record in stopped)
    assert best.reason == "finished" and sum(record.epochs for record in records.trials) < 0.6 * 27 * EPOCHS


def test_budgets(tmp_path):
    records = run(opened(configured(trials=None, epochs=20, refit_seeds=0), tmp_path / "epochs"))
    assert [record.epochs for record in records.trials] == [6, 6, 6, 2]
    assert [record.reason for record in records.trials][-2:] == ["finished", "epochs"]
    search = opened(configured(trials=None, minutes=1, refit_seeds=0), tmp_path / "minutes")
    job = search.next_job()
    assert trained(search, job, 3)  # within the minute
    search._start_s -= 60
    assert not trained(search, job) and search.journal.records["0000"].reason == "minutes"
    assert search.is_over and search.next_job() is None and search.journal.records["0000"].epochs == 4
    assert configured().tune.most_trials(None) == 8
    assert configured(trials=None).tune.most_trials(None) == 20 and configured(trials=None).tune.most_trials(96) == 96


def test_more_trials_go_on_and_refit_another_winner(tmp_path):
    run(opened(configured(trials=2), tmp_path))
    records = run(opened(configured(trials=8), tmp_path))
    winners = {record.name.split("_")[1] for record in records.refits}
    best = max(records.trials, key=lambda record: record.best("ndcg@20")[1])
    assert len(records.trials) == 8 and best.name in winners and len(winners) == 2  # that of two, and that of eight


def test_trials_that_fail(tmp_path):
    search = opened(configured(), tmp_path / "some")
    for reason in ("diverged", "failed", "lost"):
        search.end(search.next_job().name, {"reason": reason, "text": "no luck"})
    job = search.next_job()
    trained(search, job)
    search.end(job.name, {"reason": "finished"})
    assert search.best().name == job.name and search.error is None
    search = opened(configured(), tmp_path / "all")
    for _ in range(3):
        search.end(search.next_job().name, {"reason": "failed", "text": "no luck"})
    assert search.is_over and "the first 3 trials failed: no luck" in str(search.error)


def test_only_trials_use_the_data_of_the_search(tmp_path):
    search = opened(configured(trials=1), tmp_path)
    search.data = tmp_path / "prepared"
    job = search.next_job()
    assert job.data == tmp_path / "prepared" and trained(search, job)
    search.end(job.name, {"reason": "finished"})
    refit = search.next_job()
    assert refit.name.startswith("refit_") and refit.data is None


def test_a_metric_that_is_not_evaluated_ends_the_search(tmp_path):
    config = configured()
    search = opened(config, tmp_path)
    job = search.next_job()
    assert search.report(job.name, {"epoch": 1, "epochs": 6, "loss": 1.0, "seconds": 1.0, "metrics": {"recall@5": 0.1}})
    assert "tune.metric=ndcg@20 is not evaluated; known: recall@5" in str(search.error) and search.is_over


def test_combinations_that_the_configuration_rejects_are_skipped(tmp_path):
    """A rate of 1 and a decay of 1 would flip the signs of the rows."""
    space = {"optim.lr": {"choice": [0.1, 1.0]}, "optim.decay.strength": {"choice": [0.1, 1.0]}}
    config = with_values(configured(space, sampler="grid"), {"optim.decay.scope": "full", "loss.temperature": 0.1})
    records = run(opened(config, tmp_path / "one"))
    reasons = [record.reason for record in records.trials]
    assert reasons == ["finished"] * 3 + ["invalid"] and "lr * decay" in records["0003"].end["text"]
    wrong = {"optim.lr": {"uniform": [1.0, 2.0]}}
    search = opened(with_values(config, {"space": wrong, "tune.sampler": "random", "tune.trials": 99}), tmp_path / "no")
    search.config = with_values(search.config, {"optim.decay.strength": 1.0, "optim.lr": 0.01})
    assert search.next_job() is None and "no configuration of 50 in a row is valid" in str(search.error)


def test_a_trial_differs_from_its_base_by_its_values_alone(tmp_path):
    config = with_values(configured(), {"train.watch": "ndcg@50", "data.source": "x.csv", "loss.temperature": 0.1})
    search = opened(config, tmp_path)
    job = search.next_job()
    assert job.tree["eval"] == {"k": [20, 50], "test": False} and job.tree["tracking"] == {"enabled": False}
    assert job.tree["data"]["source"].endswith("/x.csv") and job.tree["data"]["source"][0] == "/"
    assert job.tree["run"]["dir"] == str(tmp_path / "trials/0000") and not {"tune", "space"} & job.tree.keys()
