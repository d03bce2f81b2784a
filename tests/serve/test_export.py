"""Exports: vectors row by row with the ids, an index with its recall, a pyfunc model in a process of its own."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest

from distrec.core.errors import UserError
from distrec.serve.export import copy_run, export
from distrec.serve.recommender import load_model
from tests.cli.test_cli import run


@pytest.mark.parametrize("file_format", ["parquet", "npy", "safetensors"])
def test_exported_vectors_give_the_scores_of_the_recommendations(run_of, tmp_path, file_format):
    if file_format == "safetensors":
        pytest.importorskip("safetensors")
    model = load_model(run_of("mf-dot"))
    out = export(model, tmp_path / "out", file_format)
    tables = {name: pq.read_table(out / f"{name}.parquet") for name in ("users", "items")}
    if file_format == "parquet":
        vectors = {name: np.array(table["vector"].to_pylist()) for name, table in tables.items()}
    elif file_format == "npy":
        vectors = {name: np.load(out / f"{name}.npy") for name in tables}
    else:
        from safetensors.numpy import load_file

        vectors = load_file(out / "vectors.safetensors")
    facts = json.loads((out / "export.json").read_text())
    assert (facts["similarity"], facts["dim"], facts["model"]) == ("dot", 16, "mf")
    rows = {name: {key: k for k, key in enumerate(table["id"].to_pylist())} for name, table in tables.items()}
    for row in model.recommend(model.users.ids[:4], 3).to_pylist():
        user, item = vectors["users"][rows["users"][row["user"]]], vectors["items"][rows["items"][row["item"]]]
        assert user @ item == pytest.approx(row["score"], rel=1e-5)
    assert tables["items"]["interactions"].to_pylist() == model.dataset.item_degrees().tolist()
    with pytest.raises(UserError, match="exists: choose a new folder"):
        export(model, out)


@pytest.mark.parametrize("library", ["faiss", "hnswlib"])
def test_an_index_is_searched_and_its_recall_is_stated(run_of, tmp_path, library):
    package = pytest.importorskip(library)
    model, notes = load_model(run_of("mf")), []
    out = export(model, tmp_path / "out", "npy", library, note=notes.append)
    facts = json.loads((out / "export.json").read_text())["index"]
    assert facts["recall@20"] > 0.99 and f"recall@20 {facts['recall@20']:.4f} against exact search" in notes[0]
    users, items = (
        v / np.linalg.norm(v, axis=1, keepdims=True) for v in (np.load(out / f"{n}.npy") for n in ("users", "items"))
    )
    if library == "faiss":
        found = package.read_index(str(out / "items.faiss")).search(users, 1)[1][:, 0]
    else:
        index = package.Index(space="ip", dim=16)
        index.load_index(str(out / "items.hnswlib"))
        found = index.knn_query(users, 1)[0][:, 0]
    assert np.mean(found == (users @ items.T).argmax(1)) > 0.95


def test_a_model_without_vectors_is_exported_for_mlflow_alone(run_of, tmp_path):
    model = load_model(run_of("ease"))
    with pytest.raises(UserError, match="model.name=ease has no vectors: .*; --mlflow exports the model"):
        export(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.timeout(240)
@pytest.mark.parametrize("name", ["mf", "ease"])
@pytest.mark.long
def test_the_pyfunc_model_recommends_in_a_process_of_its_own(run_of, tmp_path, name, capsys):
    """From a copy, after the run and its data are out of reach."""
    model = load_model(run_of(name))
    code, out, err = run(capsys, "export", str(run_of(name)), "--out", str(tmp_path / "out"), "--mlflow")
    assert code == 0 and "mlflow_model" in out, err
    moved = shutil.move(tmp_path / "out" / "mlflow_model", tmp_path / "elsewhere")
    assert not any(str(model.dataset.path) in file.read_text() for file in moved.rglob("*.json"))
    code = f"""
import mlflow.pyfunc, pandas
model = mlflow.pyfunc.load_model({str(moved)!r})
users = pandas.DataFrame({{"user": [7, 3]}})
print(model.predict(users, params={{"k": 3}}).to_json(orient="records"))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=200, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    expected = model.recommend([7, 3], 3).to_pylist()
    for row, wanted in zip(json.loads(done.stdout.splitlines()[-1]), expected, strict=True):
        assert row == wanted | {"score": pytest.approx(wanted["score"], rel=1e-4)}


def test_a_copied_run_lacks_the_optimizer_and_nothing_else(run_of, tmp_path):
    model = load_model(run_of("mf"))
    copy_run(model, tmp_path / "copy")
    copy = load_model(tmp_path / "copy")
    assert copy.dataset.path == tmp_path / "copy" / "data"
    assert copy.recommend(model.users.ids, 4).equals(model.recommend(model.users.ids, 4))
    size = [sum(f.stat().st_size for f in run.rglob("shard-*.pt")) for run in (tmp_path / "copy", run_of("mf"))]
    assert size[0] < size[1] / 2  # which holds two checkpoints with moments
