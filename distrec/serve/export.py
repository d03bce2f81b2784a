"""Export of a run: vectors with the ids of users and items, an index for approximate search, a model for MLflow."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from distrec import __version__
from distrec.core import columns
from distrec.core.errors import UserError
from distrec.core.section import expand_user
from distrec.core.status import stage
from distrec.data.writer import atomic_directory
from distrec.models.base import EmbeddingConfig
from distrec.serve import ann
from distrec.serve.recommender import Recommender
from distrec.sharding.checkpoint import is_complete
from distrec.sharding.table import ITEMS, USERS
from distrec.training.run_folder import RunFolder

FORMATS = ("parquet", "npy", "safetensors")
MLFLOW_MODEL = "mlflow_model"


def export(
    model: Recommender,
    out: str | Path,
    file_format: str = "parquet",
    index: str | None = None,
    mlflow: bool = False,
    note: Callable[[str], object] = lambda text: None,
) -> Path:
    """Export a model to a new folder, which appears when it is complete.

    - `users.parquet`, `items.parquet`: id, training interactions, and with `parquet` the vector; a row for each code.
    - `users.npy` and `items.npy`, or `vectors.safetensors`: the vectors, row by row, with `npy` and `safetensors`.
    - `items.faiss` or `items.hnswlib`: an index of the items, if asked for; its labels are rows of `items.parquet`.
    - `mlflow_model/`: a pyfunc model that holds all it needs, if asked for.
    - `export.json`: the similarity by which the vectors rank, and where they come from.

    Args:
        model: the model.
        out: the folder.
        file_format: of the vectors, one of `FORMATS`.
        index: `faiss` or `hnswlib`; None: no index.
        mlflow: also write the model for MLflow.
        note: called with lines on the result.

    Returns:
        The folder.

    Raises:
        UserError: a folder with files, an unknown format, a package that is not installed, a model without vectors.
    """
    out = expand_user(Path(out)).absolute()
    if file_format not in FORMATS:
        raise UserError(f"unknown format {file_format!r}; known: {', '.join(FORMATS)}")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists: choose a new folder")
    name = model.config.model.name
    vectors = model.vectors()
    if vectors is None and (index or not mlflow):
        raise UserError(
            f"model.name={name} has no vectors: its scores are not inner products; --mlflow exports the model"
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    with atomic_directory(out) as folder:
        facts: dict[str, Any] = {"run": str(model.folder.path), "model": name, "similarity": model.similarity}
        if vectors is not None:
            stage("writing vectors")
            _write_vectors(model, vectors, folder, file_format)
            facts |= {"format": file_format, "dim": vectors[1].shape[1]}
        else:
            note(f"model.name={name} has no vectors: only {MLFLOW_MODEL} is written")
        if index and vectors is not None:
            stage(f"building the {index} index")
            facts["index"] = ann.build(index, *vectors, model.similarity, folder)
            note(ann.describe(facts["index"]))
        if mlflow:
            stage("writing the model for MLflow")
            _write_pyfunc(model, folder)
        facts |= {"fingerprint": model.dataset.manifest.fingerprint, "distrec": __version__}
        (folder / "export.json").write_text(json.dumps(facts, indent=2) + "\n")
    return out


def _write_vectors(model: Recommender, vectors: tuple[Tensor, Tensor], folder: Path, file_format: str) -> None:
    entities = {USERS: (model.users, model.ranker.user_degrees), ITEMS: (model.items, model.ranker.item_degrees)}
    arrays = dict(zip(entities, (rows_VD.float().cpu().contiguous() for rows_VD in vectors), strict=True))
    for entity, (ids, degrees) in entities.items():
        table = pa.table({"id": ids.ids, "interactions": columns.numeric(degrees)})
        rows_VD = arrays[entity].numpy()
        if file_format == "parquet":
            flat = columns.numeric(rows_VD.ravel())
            table = table.append_column("vector", pa.FixedSizeListArray.from_arrays(flat, rows_VD.shape[1]))
        elif file_format == "npy":
            np.save(folder / f"{entity}.npy", rows_VD)
        pq.write_table(table, folder / f"{entity}.parquet")
    if file_format == "safetensors":
        try:
            from safetensors.torch import save_file
        except ImportError:
            raise UserError("safetensors is not installed: pip install 'distrec[safetensors]'") from None
        save_file(arrays, folder / "vectors.safetensors")


def _write_pyfunc(model: Recommender, folder: Path) -> None:
    from distrec.tracking.mlflow import save_pyfunc  # importing MLflow takes 1.5 s

    run = folder / "run"
    copy_run(model, run)
    user, item = ("long" if pa.types.is_integer(ids.ids.type) else "string" for ids in (model.users, model.items))
    outputs = {"user": user, "rank": "integer", "item": item, "score": "float", "source": "string"}
    save_pyfunc(folder / MLFLOW_MODEL, run, "distrec.serve.pyfunc", {"user": user}, outputs, {"k": 20, "seen": "all"})
    shutil.rmtree(run)


def copy_run(model: Recommender, to: Path) -> None:
    """Copy what `load_model` reads of a run to a new folder: it can be moved, and needs no other file."""
    checkpoint, facts = model.checkpoint, model.folder.facts()
    if not is_complete(checkpoint):  # a run that goes on deletes it
        raise UserError(f"{checkpoint} is gone or damaged since it was loaded: export again")
    shutil.copytree(model.dataset.path, to / "data")
    copy, kept = RunFolder(to), to / checkpoint.relative_to(model.folder.path)
    copy.start(model.config, {"fingerprint": facts.get("fingerprint"), "data": "data"})
    kept.mkdir(parents=True)
    for file in sorted(checkpoint.glob("shard-*.pt")):
        content = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        if isinstance(model.config.model, EmbeddingConfig):  # without the state of the optimizer
            content["tables"] = {name: {"rows": rows["rows"].clone()} for name, rows in content["tables"].items()}
        torch.save(content, kept / file.name)
