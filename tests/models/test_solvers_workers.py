"""Solvers through the ordinary loop: 1, 2 and 3 workers give the same, a checkpoint goes on at another number of
workers, and planted preferences are found."""

from pathlib import Path

import numpy as np
import pytest
import torch

from distrec.data.prepare import prepare
from distrec.testing.host import FolderHost
from distrec.testing.ranks import run_ranks
from distrec.training.evaluate import _load
from distrec.training.loop import Job, Loop, make_learner
from tests.conftest import changed

CPU, EPOCHS = torch.device("cpu"), 3
DEBIASED = {"debiased": True, "form": "topk", "k": 10}
MODELS = {
    "ials": {"name": "ials", "dim": 16, "regularization": 0.1},
    "ials_debiased": {"name": "ials", "dim": 16, "regularization": 0.1, **DEBIASED},
    "ease": {"name": "ease"},
    "ease_debiased": {"name": "ease", **DEBIASED, "precision": "float32"},
    "itemknn": {"name": "itemknn", "neighbours": 50},
    "pop": {"name": "pop"},
}
ONE_PASS = ["ease", "ease_debiased", "itemknn", "pop"]


def run_models(configs, dataset, folder, restore=None):
    """Run each through the loop; return its losses, metrics of validation and test, and the notes."""
    results = {}
    for name, config in configs.items():
        learner = make_learner(config, dataset, CPU)
        host = FolderHost(Path(folder, name), restore and Path(restore, name, "1"))
        outcome = Loop(Job(config, dataset, "thread"), learner, host).run()
        notes = [event["text"] for event in host.events if event["kind"] == "note"]
        valid = [record["metrics"] for record in outcome["history"]]
        results[name] = [record["loss"] for record in outcome["history"]], valid, outcome["test"].means(), notes
    return results


def made(base, names):
    for name in names:
        (base / name).mkdir(parents=True)
    return base


@pytest.fixture(scope="module")
def configs(small):
    return {name: changed(small, model=model, train={"epochs": EPOCHS}) for name, model in MODELS.items()}


@pytest.fixture(scope="module")
def by_workers(configs, dataset, tmp_path_factory):
    base = tmp_path_factory.mktemp("solvers")
    return base, {w: run_ranks(w, run_models, configs, dataset, made(base / str(w), configs)) for w in (1, 2, 3)}


@pytest.mark.parametrize("name", MODELS)
def test_the_number_of_workers_changes_nothing(by_workers, name):
    losses, valid, test, _ = by_workers[1][1][0][name]
    for workers in (2, 3):
        ranks = by_workers[1][workers]
        assert all(rank[name][:3] == ranks[0][name][:3] for rank in ranks)
        assert ranks[0][name][0] == pytest.approx(losses, rel=1e-6)
        for found, expected in zip([*ranks[0][name][1], ranks[0][name][2]], [*valid, test], strict=True):
            assert found == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("workers", [1, 3])
def test_a_checkpoint_of_two_workers_goes_on(by_workers, configs, dataset, tmp_path, workers):
    base, results = by_workers
    found = run_ranks(workers, run_models, configs, dataset, made(tmp_path, configs), base / "2")[0]
    for name in configs:
        assert found[name][0] == pytest.approx(results[2][0][name][0], rel=1e-6), name
        assert found[name][2] == pytest.approx(results[2][0][name][2], abs=1e-3), name


def test_planted_preferences_are_found(by_workers):
    ndcg = {name: result[2]["ndcg@20"] for name, result in by_workers[1][1][0].items()}
    assert all(ndcg[name] > 1.25 * ndcg["pop"] for name in MODELS if name != "pop"), ndcg
    losses = by_workers[1][1][0]["ials"][0]
    assert losses[2] < losses[1] < losses[0]


def test_one_pass_is_not_repeated(by_workers):
    for name in ONE_PASS:
        losses, valid, _, notes = by_workers[1][1][0][name]
        assert len(set(losses)) == 1 and all(record == valid[0] for record in valid), name
        assert any("done after one epoch" in note for note in notes), name


def test_a_checkpoint_is_evaluated_without_the_loop(by_workers, configs, dataset):
    """As `distrec evaluate` does: a learner is built and loaded, and reads no more than its users' items."""
    for name, config in configs.items():
        scorer, _, meta = _load(config, dataset, CPU, by_workers[0] / "3" / name / "1")
        assert len(meta["history"]) == 1
        if scorer.representations(np.arange(2)) is None:
            out_UV = torch.full((2, 200), torch.nan)
            scorer.scores(np.arange(2), np.arange(200), out_UV)
            assert not out_UV.isnan().any()


def test_the_smallest_data(small, tmp_path):
    """One interaction, and two of three workers without a user."""
    (tmp_path / "train.txt").write_text("0 0\n")
    (tmp_path / "test.txt").write_text("0 1\n")
    base = changed(small, data={"source": str(tmp_path), "valid_fraction": 0}, train={"epochs": 2}, eval={"every": 0})
    configs = {name: changed(base, model=model) for name, model in MODELS.items()}
    dataset = prepare(base.data, log=lambda text: None)
    found = [run_ranks(w, run_tests, configs, dataset, made(tmp_path / str(w), configs))[0] for w in (1, 3)]
    for name in configs:
        assert found[0][name][0] == pytest.approx(found[1][name][0], rel=1e-5), name
        assert found[0][name][1] == found[1][name][1], name


def run_tests(configs, dataset, folder):
    """Run each through the loop; return its losses and test metrics."""
    results = {}
    for name, config in configs.items():
        host = FolderHost(Path(folder, name))
        outcome = Loop(Job(config, dataset, "thread"), make_learner(config, dataset, CPU), host).run()
        results[name] = [record["loss"] for record in outcome["history"]], outcome["test"].means()
    return results
