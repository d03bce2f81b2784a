"""The loop over epochs without Ray: early stopping, the best epoch, and runs that are extended."""

from pathlib import Path

import pytest
import torch

from distrec.core.errors import UserError
from distrec.data.dataset import Part
from distrec.evaluation.evaluator import evaluate_part
from distrec.testing.host import FolderHost
from distrec.training.config import Config, load_config
from distrec.training.loop import Job, Loop
from distrec.training.run_folder import RunFolder, best_name
from distrec.training.trainer import Trainer
from tests.conftest import changed

CPU = torch.device("cpu")


def run(config: Config, dataset, folder: Path, restore: Path | None = None):
    """Return the outcome of a run in this process, its texts, and the learner."""
    learner, host = Trainer(config, dataset, CPU), FolderHost(folder, restore)
    outcome = Loop(Job(config, dataset, "thread"), learner, host).run()
    return outcome, [event["text"] for event in host.events if event["kind"] == "note"], learner


def test_early_stopping_evaluates_the_best_epoch(small, dataset, tmp_path):
    config = changed(small, train={"epochs": 40, "patience": 3, "checkpoint_every": 100}, optim={"lr": 0.1})
    outcome, texts, learner = run(config, dataset, tmp_path)
    values = [record["metrics"]["ndcg@20"] for record in outcome["history"]]
    best = values.index(max(values)) + 1
    assert 1 < len(values) < 40, "the run was to stop early: the test would show nothing"
    assert (len(values), outcome["tested_epoch"]) == (best + 3, best)
    assert f"stopping after epoch {best + 3}: ndcg@20 was best after epoch {best}" in texts
    again = Trainer(config, dataset, CPU)
    again.load(tmp_path / str(best))
    assert evaluate_part(again.sharded, dataset, Part.TEST, config.eval, again.exchange) == outcome["test"]
    resumed, texts, _ = run(config, dataset, tmp_path, tmp_path / str(best + 3))
    assert resumed["test"] == outcome["test"] and len(resumed["history"]) == best + 3, "a stopped run trains no more"


def test_a_watched_metric_keeps_its_best_epoch_without_stopping(small, dataset, tmp_path):
    config = changed(small, train={"epochs": 8, "watch": "recall@5", "checkpoint_every": 100}, optim={"lr": 0.1})
    outcome, _, _ = run(config, dataset, tmp_path)
    values = [record["metrics"]["recall@5"] for record in outcome["history"]]
    assert len(values) == 8 and outcome["tested_epoch"] == values.index(max(values)) + 1
    rises = {str(e + 1) for e in range(8) if values[e] > max(values[:e], default=-1)}
    assert {path.name for path in tmp_path.iterdir()} == rises | {"8"}


def test_a_watched_metric_is_measured_on_the_validation_part_alone(small, dataset, tmp_path):
    config = changed(small, train={"epochs": 2, "watch": "mrr@5"}, eval={"bootstrap": 9, "magnitudes": True})
    outcome, texts, _ = run(config, dataset, tmp_path)
    metrics, figures = (outcome["history"][-1][key] for key in ("metrics", "diagnostics"))
    assert {"mrr@5", "ndcg@20", "ndcg@20/dot", "ndcg@20/cosine", "norm_correlation_items"} < metrics.keys()
    assert not any(name.endswith("/low") for name in metrics) and not any(t.startswith("warning") for t in texts)
    assert 1 < figures["effective_rank_users"] < config.model.dim and figures["gradient_norm"] > 0
    tested = outcome["test"].means()
    assert "mrr@5" not in tested and tested["ndcg@20/low"] < tested["ndcg@20"] < tested["ndcg@20/high"]
    assert outcome["per_user"].values.keys() == {
        f"{m}@20{s}" for m in ("recall", "ndcg") for s in ("", "/dot", "/cosine")
    }


@pytest.mark.parametrize("schedule", [{}, {"name": "step", "every_steps": 15}, {"warmup_steps": 30}])
def test_an_extended_run_equals_one_that_was_longer_from_the_start(small, dataset, tmp_path, schedule):
    config = changed(small, train={"epochs": 2}, optim={"schedule": schedule, "rule": "adam"})
    longer = changed(config, train={"epochs": 4})
    whole, _, expected = run(longer, dataset, tmp_path / "whole")
    run(config, dataset, tmp_path / "short")
    extended, _, found = run(longer, dataset, tmp_path / "extended", tmp_path / "short" / "2")
    assert [r["loss"] for r in extended["history"]] == [r["loss"] for r in whole["history"]]
    assert extended["test"] == whole["test"]
    for name, table in found.tables.items():
        assert torch.equal(table.flush(), expected.tables[name].flush())


def test_what_a_resumed_run_may_change(small, tmp_path):
    (tmp_path / "run").mkdir()
    stored = changed(small, run={"dir": str(tmp_path / "run")}, train={"epochs": 10})
    RunFolder(tmp_path / "run").start(stored, {})

    def choose(**sections) -> None:
        RunFolder.choose(changed(stored, run={"resume": True}, **sections), "x").release()

    choose(train={"epochs": 30, "patience": 2}, eval={"k": [5], "every": 2})
    with pytest.raises(UserError, match=r"with train.epochs=5: it was 10, and can only grow"):
        choose(train={"epochs": 5})
    with pytest.raises(UserError, match="another configuration: optim.lr was 0.01, is 0.5"):
        choose(optim={"lr": 0.5})
    for schedule in ("linear", "cosine"):
        RunFolder(tmp_path / "run").start(changed(stored, optim={"schedule": {"name": schedule}}), {})
        with pytest.raises(UserError, match=f"schedule.name={schedule} its learning rate has fallen to the end at epo"):
            choose(optim={"schedule": {"name": schedule}}, train={"epochs": 11})


def test_the_watched_metric_is_checked():
    with pytest.raises(UserError, match="'auc' is not a validation metric; write recall@20 or ndcg@20"):
        load_config(None, ["train.watch=auc"])
    with pytest.raises(UserError, match="need evaluations: set eval.every to 1"):
        load_config(None, ["train.patience=2", "eval.every=0"])
    assert load_config(None, ["train.patience=2", "eval.k=5,10"]).watched == "ndcg@5"
    assert [best_name(epoch) for epoch in (2, 10)] == sorted([best_name(2), best_name(10)])
