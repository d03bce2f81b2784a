"""The configurations of configs/ on their public data sets, through the command line. DISTREC_DATA names the folder.

Each run has a fixed number of epochs and is evaluated on the test part once, at its end.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DATA = Path(os.environ.get("DISTREC_DATA", ROOT.parent / "shared" / "data"))

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(not DATA.is_dir(), reason="needs the public data sets: set DISTREC_DATA"),
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
