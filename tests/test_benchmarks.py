"""Scripts of benchmarks/: what they select, print and pass on. Nothing is measured."""

import importlib
import sys
from pathlib import Path

import numpy as np
import pytest

from distrec.core.errors import UserError
from distrec.data.dataset import Part

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def script(monkeypatch):
    """Return a function that imports a script, as Python finds its modules when it runs it."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module


def test_presets_leave_solvers_out(script):
    names = {file.stem for file in script("presets").run_files()}
    assert len(names) == 79 and not any("ials" in name for name in names)


def test_models_train_solvers_and_test_the_best_epoch(script, dataset, tmp_path, monkeypatch):
    models = script("models")
    monkeypatch.setattr(models, "DATA_FOLDER", tmp_path)
    (tmp_path / "ml-1m").mkdir()
    user, item = dataset.interactions(Part.TRAIN, range(dataset.manifest.buckets))
    np.savetxt(tmp_path / "ml-1m" / "pairs.csv", np.stack([user, item], 1), "%d", ",", header="user,item", comments="")
    assert models.train("ml-1m", "ease", 1, [])["tested_epoch"] == 1
    small = ["model.dim=16", "train.batch_size=64", "optim.lr=0.02", "train.epochs=8"]
    found = models.train("ml-1m", "mf", 1, small)
    values = [value for _, _, value in found["curve"]]
    assert found["tested_epoch"] == 1 + int(np.argmax(values)) < len(values)  # NDCG falls in the last epoch


@pytest.mark.parametrize("name", ["cpu", "h200"])
@pytest.mark.long
def test_the_table_of_measured_points(script, capsys, name):
    script("scaling").report_table(BENCHMARKS / "results" / f"scaling_{name}.json")
    printed = capsys.readouterr().out
    assert "| step, ms |" in printed
    assert ("plan / memory" in printed, "plan / sent" in printed) == (name == "cpu",) * 2  # measured there alone


def test_rivals_get_one_blas_thread(script, tmp_path):
    open_rival, code = script("measure.rival").open_rival, tmp_path / "rival.py"
    code.write_text("import json, os\nprint(json.dumps(dict(os.environ)), flush=True)\ninput()\n")
    with open_rival(Path(sys.executable), str(code), [str(tmp_path)], {"MORE": "x"}) as rival:
        assert (rival.versions["OPENBLAS_NUM_THREADS"], rival.versions["MORE"]) == ("1", "x")
    with pytest.raises(UserError, match="no-python is missing: install the rivals by `make bench`, or name one"):
        open_rival(tmp_path / "no-python", str(code), [str(tmp_path)])
