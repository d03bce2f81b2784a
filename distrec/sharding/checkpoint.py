"""Checkpoints: each worker writes its rows and their state to one file; any number of workers can read them back.

State that is equal at all workers is in the file of worker 0.
"""

import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distrec.core.errors import UserError, reason_of
from distrec.sharding.partition import Partition

_FORMAT = 2

Values = dict[str, Any]
"""Plain values and tensors by name, equal at all workers."""

Rows = dict[str, Tensor]
"""Per-row tensors of one table by name, each (V_local, ...), in the order of the shard's rows."""


def save_shard(
    folder: Path, worker: int, partitions: dict[str, Partition], tables: dict[str, Rows], meta: Values, shared: Values
) -> None:
    """Write one worker's part of a checkpoint.

    Args:
        folder: folder of the checkpoint, one for all workers.
        worker: rank of this worker.
        partitions: partition of each table.
        tables: per-row tensors of the same tables.
        meta: plain values that are the same at all workers.
        shared: values and tensors that are the same at all workers, dense parameters for example.
    """
    shape = {name: (partition.rows, partition.buckets) for name, partition in partitions.items()}
    workers = next(iter(partitions.values())).workers
    content = {"format": _FORMAT, "worker": worker, "workers": workers, "shape": shape, "tables": tables, "meta": meta}
    try:
        torch.save(content | {"shared": shared if worker == 0 else {}}, folder / _name(worker, workers))
    except (OSError, RuntimeError) as error:  # torch raises RuntimeError where the disk is full
        raise unwritable(folder, error) from None


def unwritable(path: Path, error: Exception) -> UserError:
    """Return the error of a run that cannot write to a path: the disk is full, or not writable."""
    return UserError(f"cannot write to {path}: {reason_of(error)}; make room, and go on with run.resume=true")


def is_complete(folder: Path) -> bool:
    """Return whether no file of a checkpoint is missing or truncated. Reads the ends of its files alone."""
    shards = sorted(file.name for file in folder.glob("shard-*-of-*.pt"))
    workers = int(shards[0].rpartition("-of-")[2].removesuffix(".pt")) if shards else 0
    if shards != [_name(worker, workers) for worker in range(workers)]:
        return False
    files = [file for file in folder.glob("*") if file.is_file()]
    return bool(files) and all(_has_directory(file) for file in files if file.suffix == ".pt")


def _has_directory(file: Path) -> bool:
    """Return whether a file of `torch.save`, a zip archive, has its directory, which is written last."""
    try:
        zipfile.ZipFile(file).close()
    except (zipfile.BadZipFile, OSError):
        return False
    return True


def load_shard(folder: Path, worker: int, partitions: dict[str, Partition]) -> tuple[dict[str, Rows], Values, Values]:
    """Read a checkpoint that was written by any number of workers.

    Returns:
        (this worker's per-row tensors of each table, `meta`, `shared`), tensors on the CPU.

    Raises:
        UserError: files are missing, or were written for other tables or another data set.
    """
    files = sorted(folder.glob("shard-*.pt"))
    if not files:
        raise UserError(f"no checkpoint in {folder}")
    first = _read(files[0])
    saved = {name: Partition(rows, buckets, first["workers"]) for name, (rows, buckets) in first["shape"].items()}
    if len(files) != first["workers"]:
        raise UserError(f"{folder} contains {len(files)} of {first['workers']} shards")
    lacks, unused = sorted(partitions.keys() - saved), sorted(saved.keys() - partitions)
    if lacks or unused:
        raise UserError(f"{folder} is of another model or loss: it lacks tables {lacks} and has in addition {unused}")
    if {n: (p.rows, p.buckets) for n, p in partitions.items()} != first["shape"]:
        raise UserError(f"{folder} was written for tables {first['shape']}, not for this data set")
    if saved == partitions:
        rows = _read(folder / _name(worker, first["workers"]))["tables"]
    else:
        parts = [_read(file)["tables"] for file in files]
        rows = {
            name: _reshard(saved[name], p, worker, [part[name] for part in parts]) for name, p in partitions.items()
        }
    return rows, first["meta"], first["shared"]


def read_meta(folder: Path) -> Values:
    """Return the `meta` of a complete checkpoint, without its rows."""
    meta: Values = _read(min(folder.glob("shard-*.pt")))["meta"]
    return meta


def _reshard(saved: Partition, partition: Partition, worker: int, parts: list[Rows]) -> Rows:
    """Select this worker's rows from the shards of another number of workers."""
    ids_V = torch.from_numpy(partition.rows_of(worker))
    owner_V, local_V = saved.owner(ids_V), saved.local(ids_V)
    rows: Rows = {}
    for key, example in parts[0].items():
        selected = example.new_empty(len(ids_V), *example.shape[1:])
        for source, part in enumerate(parts):
            owned = owner_V == source
            selected[owned] = part[key][local_V[owned]]
        rows[key] = selected
    return rows


def _name(worker: int, workers: int) -> str:
    return f"shard-{worker:05d}-of-{workers:05d}.pt"


def _read(file: Path) -> dict[str, Any]:
    if not file.exists():
        raise UserError(f"{file} of the checkpoint is missing")
    try:
        content: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # of the archive, the pickle or the storage: they have no common base
        raise UserError(f"{file} of the checkpoint is damaged: {str(error).strip().splitlines()[0]}") from None
    if content["format"] != _FORMAT:
        raise UserError(f"{file} has format {content['format']}; this version reads {_FORMAT}")
    return content
