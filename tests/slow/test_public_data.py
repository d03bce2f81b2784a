"""The configurations of configs/ on their public data sets, through the command line. DISTREC_DATA names the folder.

Each run has a fixed number of epochs and is evaluated on the test part once, at its end.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from distrec.core.config import parse
from distrec.data.dataset import Part
from distrec.data.prepare import prepare
from distrec.sharding.table import ITEMS
from distrec.testing.ranks import run_ranks
from distrec.training.config import Config
from distrec.training.loop import make_learner
from tests.models.test_solvers import ease

ROOT = Path(__file__).parents[2]
DATA = Path(os.environ.get("DISTREC_DATA", "")).absolute()  # the command line runs in another folder

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(
        not os.environ.get("DISTREC_DATA"), reason="needs the public data sets: set DISTREC_DATA to their folder"
    ),
]


@pytest.fixture(scope="module")
def train(tmp_path_factory):
    """Train through the command line, each configuration once; return the content of result.json."""
    folder, results = tmp_path_factory.mktemp("public"), {}

    def run(name: str, workers: int, epochs: int) -> dict:
        key = f"{name}-{workers}-{epochs}"
        if key not in results:
            words = [f"data.source={DATA / name}", f"train.workers={workers}", f"train.epochs={epochs}"]
            config = ROOT / "configs" / f"{name}_mf_ssm.yaml"
            command = [sys.executable, "-m", "distrec.cli.main", "train", str(config), *words, f"run.dir={key}"]
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=1200)
            assert done.returncode == 0, done.stdout + done.stderr
            results[key] = json.loads((folder / key / "result.json").read_text())
            print(f"\n{key}: {results[key]['metrics']} {results[key]['timing']}")
        return results[key]

    return run


def test_gowalla_reaches_its_quality_in_six_minutes(train):
    result = train("gowalla", 2, 15)
    assert result["metrics"]["test/recall@20"] >= 0.155
    assert result["metrics"]["test/ndcg@20"] >= 0.118
    assert result["timing"]["total_s"] < 360


@pytest.mark.parametrize(("epochs", "tolerance"), [(2, 0.00005), (15, 0.0005)])
def test_gowalla_is_the_same_on_one_two_and_three_workers(train, epochs, tolerance):
    found = [train("gowalla", workers, epochs)["metrics"]["test/ndcg@20"] for workers in (1, 2, 3)]
    assert max(found) - min(found) <= tolerance, found


def test_yelp_reaches_its_quality(train):
    result = train("yelp2018", 2, 15)
    assert result["metrics"]["test/recall@20"] > 0.05
    assert result["metrics"]["test/ndcg@20"] > 0.04


def ease_columns(config, dataset):
    """Solve; return the items of this worker and their columns."""
    learner = make_learner(config, dataset, torch.device("cpu"))
    learner.train_epoch(0, 0, iter(()), lambda done, total: None)
    return learner.partitions[ITEMS].rows_of(learner.rank), learner.weights_XV.numpy()


@pytest.mark.parametrize(("debiased", "factor"), [(False, 1.0), (True, 1.5)])
def test_ease_on_movielens_equals_a_dense_solve(tmp_path, debiased, factor):
    """With a coefficient c for all users, S is c times that of EASE as it is printed."""
    source = {"source": str(DATA / "ml-1m"), "valid_fraction": 0, "cache": str(tmp_path)}
    model = {"name": "ease", **({"debiased": True, "alpha": 0.5} if debiased else {})}
    config = parse(Config, {"data": source, "model": model})
    dataset = prepare(config.data)
    user, item = dataset.interactions(Part.TRAIN, range(dataset.manifest.buckets))
    x_UV = np.zeros((dataset.manifest.users, dataset.manifest.items))
    x_UV[user, item] = 1
    expected_VV = factor * ease(x_UV, 200)
    for workers in (1, 2):
        for items, columns_XV in run_ranks(workers, ease_columns, config, dataset, timeout_s=600):
            np.testing.assert_allclose(columns_XV, expected_VV[:, items], atol=1e-6)
