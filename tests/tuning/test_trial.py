"""One training in this process: as Ray Train does it, stopped by its callback, resumed, with several workers."""

import pytest

from distrec.core.config import parse
from distrec.core.errors import Diverged
from distrec.training.config import Config
from distrec.training.driver import train
from distrec.training.evaluate import evaluate
from distrec.training.run_folder import RunFolder
from distrec.tuning.trial import run_trial
from tests.conftest import changed


def in_folder(small, folder, **sections) -> Config:
    train = {"epochs": 4, "workers": 1, **sections.pop("train", {})}
    return changed(small, run={"dir": str(folder)}, tracking={"enabled": False}, train=train, **sections)


def figures(result):
    return result.metrics, result.loss, result.epochs, result.tested_epoch, result.test_users


@pytest.mark.timeout(240)
@pytest.mark.long
def test_the_same_bits_as_ray_train(ray_cluster, small, dataset, tmp_path):
    here = run_trial(in_folder(small, tmp_path / "here"))
    assert figures(here) == figures(train(in_folder(small, tmp_path / "ray")))
    assert RunFolder(tmp_path / "here").result() == here
    assert evaluate(tmp_path / "here").metrics["test/ndcg@20"] == here.metrics["test/ndcg@20"]
    two = run_trial(in_folder(small, tmp_path / "two", train={"workers": 2}))
    assert two.workers == 2 and two.metrics == pytest.approx(here.metrics, abs=0.01)


def test_stopped_and_resumed(small, dataset, tmp_path):
    whole = run_trial(in_folder(small, tmp_path / "whole"), dataset=dataset)
    config, seen = in_folder(small, tmp_path / "parts"), []
    for stop in (1, 3):

        def listen(event, stop=stop):
            seen.append((event["epoch"], event["loss"]))
            return event["epoch"] == stop

        part = run_trial(config, listen, dataset)
        assert (part.epochs, part.test_users, part.loss) == (stop, 0, whole.loss[:stop])
        assert RunFolder(tmp_path / "parts").result() is None
    end = run_trial(config, lambda event: seen.append((event["epoch"], event["loss"])), dataset)
    assert figures(end) == figures(whole)
    losses = dict(enumerate(whole.loss, 1))
    assert seen == [(epoch, losses[epoch]) for epoch in (1, 1, 2, 3, 1, 2, 3, 4)]  # those before a resume again
    assert run_trial(config, dataset=dataset) == end  # a finished one is not run again
    assert len(list((tmp_path / "parts/checkpoints").glob("*"))) <= 3  # two, and the record of Ray Train


def test_the_test_part_is_left_alone(small, dataset, tmp_path):
    result = run_trial(in_folder(small, tmp_path, eval={"test": False}), dataset=dataset)
    assert result.test_users == 0 and set(result.metrics) == {"valid/recall@20", "valid/ndcg@20"}


def test_a_training_that_diverges(small, dataset, tmp_path):
    tree = in_folder(small, tmp_path, model={"similarity": "dot"}, loss={"name": "mse"}).model_dump(mode="json")
    tree["optim"] = {"rule": "sgd", "lr": 1e30}
    with pytest.raises(Diverged, match="the loss of epoch . is"):
        run_trial(parse(Config, tree), dataset=dataset)
