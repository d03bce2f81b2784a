"""Documentation is true: its Python blocks run, and the files it names exist."""

import contextlib
import inspect
import io
import re
import runpy
import shutil
import sys
import textwrap
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from distrec import load_config
from distrec.losses import base
from distrec.models import models
from distrec.testing.ranks import run_ranks
from tests.conftest import changed
from tests.losses import formulas, test_losses
from tests.training import test_trainer
from tests.training.test_seams import run_parts
from tests.training.test_trainer import preferences  # noqa: F401  (a fixture)

ROOT = Path(__file__).parents[1]
EXAMPLES = {"distrec/losses/scaled_bpr.py", "distrec/models/projected_mf.py"}  # files that CONTRIBUTING adds
DOCUMENTS = [ROOT / name for name in ("README.md", "CONTRIBUTING.md")] + sorted((ROOT / "docs").glob("*.md"))


def python_blocks(document: Path) -> list[str]:
    """Return the Python blocks of a Markdown file, in order."""
    found = re.findall(r"^( *)```python\n(.*?)^\1```$", document.read_text(), re.DOTALL | re.MULTILINE)
    return [textwrap.dedent(block) for _, block in found]


def test_every_python_block_is_run_by_a_test_below():
    """README: two blocks. CONTRIBUTING: a loss, its formula and its settings; a model and its case."""
    found = {document.name: len(python_blocks(document)) for document in DOCUMENTS if python_blocks(document)}
    assert found == {"README.md": 2, "CONTRIBUTING.md": 5}


@pytest.mark.timeout(240)
@pytest.mark.long
def test_the_example_of_the_readme(ray_cluster, empty_store, tmp_path, monkeypatch, capsys):
    """Run on small files under the names that it uses, on one worker, whose start takes least."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ROOT / "configs", "configs")
    with Path("configs/gowalla_mf_ssm.yaml").open("a") as file:
        file.write("  workers: 1\n  stream: thread\n")  # its last section is `train`
    Path("runs").mkdir()
    shutil.copy(empty_store, "runs/mlflow.db")
    data = Path("path/to/gowalla")
    data.mkdir(parents=True)
    generator = np.random.default_rng(0)
    items = [generator.permutation(80)[:12] for _ in range(40)]  # of each user; the last two are its test items
    for name, part in (("train.txt", slice(10)), ("test.txt", slice(10, 12))):
        lines = [f"{user} {' '.join(map(str, own[part]))}\n" for user, own in enumerate(items)]
        (data / name).write_text("".join(lines))
    block, serving = python_blocks(ROOT / "README.md")
    names = {}
    exec(compile(block, "README.md", "exec"), names)
    result, printed = names["result"], capsys.readouterr().out.splitlines()
    assert result.folder == tmp_path / "runs" / "search" and result.test_users == 40
    assert any("'kind': 'epoch'" in line for line in printed)  # on_event=print
    assert printed[-2].startswith(f"{result.metrics['test/ndcg@20']} ") and 0 < float(printed[-1]) <= 1
    exec(compile(serving, "README.md", "exec"), {})
    out = capsys.readouterr().out
    assert re.search(r"user +rank +item +score +source\n0 +0 +1 .* model\n", out)


def forget_at_the_end(patch, registry, name):
    """Let a part be registered for this test only."""
    patch.setitem(registry, name, None)  # `delitem` alone would undo nothing of a part that is not there yet
    del registry[name]


def test_the_loss_of_the_contributing_guide(preferences, monkeypatch):  # noqa: F811
    """The added loss passes the tests of all losses."""
    loss, *entries = python_blocks(ROOT / "CONTRIBUTING.md")[:3]
    names = {}
    exec(compile("\n".join(entries), "CONTRIBUTING.md", "exec"), names)
    (name,) = names["FORMULAS"]
    forget_at_the_end(monkeypatch, base.losses, name)
    exec(compile(loss, "CONTRIBUTING.md", "exec"), {})
    assert name in base.losses
    monkeypatch.setitem(formulas.FORMULAS, name, names["FORMULAS"][name])
    monkeypatch.setattr(test_trainer, "SETTINGS", test_trainer.SETTINGS | names["SETTINGS"])
    contracts = [
        test
        for key, test in vars(test_losses).items()
        if key.startswith("test_") and list(inspect.signature(test).parameters) == ["name"]
    ]
    assert len(contracts) >= 8  # formula, gradient, masks, own positives, extremes, nothing, zeros, lengths
    for test in contracts:
        test(name=name)
    test_trainer.test_every_loss_learns_the_planted_preferences(preferences, name)


def test_the_model_of_the_contributing_guide(small, dataset, tmp_path, monkeypatch):
    """The added model passes the test of all parts, on one worker and on two."""
    model, case = python_blocks(ROOT / "CONTRIBUTING.md")[3:]
    names, found = {}, []
    exec(compile(case, "CONTRIBUTING.md", "exec"), names)
    for workers in (1, 2):
        folder = tmp_path / str(workers)
        (folder / "projected_mf").mkdir(parents=True)
        found.append(run_ranks(workers, run_added_model, model, names["PARTS"], small, dataset, folder)[0])
    assert np.allclose(found[0], found[1], rtol=1e-5) and found[0][1] < found[0][0]


def run_added_model(model, parts, small, dataset, folder):
    """Run a model given as source text, which is registered for this run only; return its losses."""
    with pytest.MonkeyPatch.context() as patch:
        forget_at_the_end(patch, models, "projected_mf")
        patch.setitem(sys.modules, "projected_mf", ModuleType("projected_mf"))
        exec(compile(model, "CONTRIBUTING.md", "exec"), vars(sys.modules["projected_mf"]))
        configs = {name: changed(small, **part) for name, part in parts.items()}
        return run_parts(configs, dataset, folder)["projected_mf"][0]


def test_the_keys_of_the_example_script():
    example = runpy.run_path(str(ROOT / "examples" / "train_and_evaluate.py"))
    config = load_config(overrides=example["OVERRIDES"])
    assert (config.train.workers, config.train.epochs, config.tracking.enabled) == (1, 3, False)


@pytest.mark.slow  # the functions that it calls are those of the README's example
@pytest.mark.timeout(240)
def test_the_example_script(ray_cluster, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with contextlib.redirect_stdout(io.StringIO()) as out:
        runpy.run_path(str(ROOT / "examples" / "train_and_evaluate.py"), run_name="__main__")
    printed = dict(re.findall(r"^(test/\w+@\d+) +(\d\.\d{4})$", out.getvalue(), re.MULTILINE))
    assert printed.keys() == {f"test/{metric}@{k}" for metric in ("recall", "ndcg") for k in (5, 10, 20)}
    assert len(re.findall(r"^epoch \d: loss", out.getvalue(), re.MULTILINE)) == 3
    assert float(printed["test/recall@5"]) < float(printed["test/recall@10"]) < float(printed["test/recall@20"])


@pytest.mark.parametrize("document", [*DOCUMENTS, ROOT / "CHANGELOG.md"], ids=lambda path: path.name)
def test_paths_and_links_exist(document):
    text = document.read_text()
    paths = re.findall(r"`((?:distrec|tests|docs|configs|benchmarks|examples)/[\w./]*)`", text)
    links = re.findall(r"\]\((?!http)([^)#]+)", text)
    missing = [path for path in paths if not (ROOT / path).exists()]
    missing += [link for link in links if not (document.parent / link).exists()]
    missing = [path for path in missing if path not in EXAMPLES]
    assert missing == []
