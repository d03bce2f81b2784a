"""Recommendations for all users, in chunks of users, so that memory stays bounded; written to one file."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import torch

from distrec.core.atomic_file import atomic_file
from distrec.core.errors import UNWRITABLE, UserError, reason_of
from distrec.core.section import expand_user
from distrec.core.status import share, stage
from distrec.data.dataset import Dataset
from distrec.serve.candidates import Seen
from distrec.serve.lists import Lists, list_table
from distrec.serve.ranker import Ranker
from distrec.serve.recommender import Catalogue, Recommender
from distrec.sharding.partition import Partition
from distrec.training.evaluate import load_checkpoint, open_run

_CHUNK = 2**16  # users, of all workers together


@dataclass(frozen=True)
class Wanted:
    """What is recommended to every user; see `Recommender.recommend`."""

    k: int = 20
    seen: Seen = "all"
    chosen_V: np.ndarray | None = None
    """Items to rank, (items,) bool; None: all."""


def recommend_all(
    model: Recommender,
    out: str | Path,
    k: int = 20,
    *,
    seen: Seen = "all",
    items: Sequence[Any] | None = None,
    exclude: Sequence[Any] | None = None,
) -> int:
    """Write the table of `Recommender.recommend` for all users of the data, in the order of their ids, to a file.

    Args:
        model: the model.
        out: a `.parquet` or `.csv` file, which appears when it is complete.
        k: length of the lists.
        seen: the user's items to leave out.
        items: recommend only these items; None: any.
        exclude: never recommend these items.

    Returns:
        The number of users.

    Raises:
        UserError: a file of another kind, or one that cannot be written.
    """
    wanted = Wanted(k, seen, model.candidates(items, exclude))
    stage("recommending to all users")
    return write_chunks(model, out, chunks(model.ranker, wanted))


def chunks(ranker: Ranker, wanted: Wanted) -> Iterator[Lists]:
    """Yield the lists of this worker's users, chunk by chunk; the chunks of all workers cover the same codes."""
    own, users = ranker.users.rows_of(ranker.exchange.rank), ranker.users.rows
    for first in range(0, users, _CHUNK):
        low, high = np.searchsorted(own, [first, first + _CHUNK])
        yield ranker.of_users(own[low:high], wanted.k, wanted.seen, wanted.chosen_V)
        share(min(1.0, (first + _CHUNK) / users))


def write_chunks(catalogue: Catalogue, out: str | Path, lists: Iterator[Lists]) -> int:
    """Write the lists of all users, given in chunks as of one worker. Return the number of users."""
    first = 0
    with table_writer(out) as write:
        for chunk in lists:
            codes = np.arange(first, first + len(chunk.codes_RK))
            write(list_table({"user": catalogue.users.of(codes)}, chunk, catalogue.items))
            first += len(codes)
    return first


def write_parts(run: str, wanted: Wanted, folder: Path) -> None:
    """Write the lists of this worker's users to a folder, a file for each chunk. Collective."""
    opened, config, dataset = open_run(run)
    loaded = load_checkpoint(opened, config, dataset, torch.device("cpu"))
    ranker = Ranker(loaded.scorer, loaded.exchange, dataset, config.eval.similarity)
    for number, lists in enumerate(chunks(ranker, wanted)):
        assert lists.source_R is not None
        file = _part(folder, number, loaded.exchange.rank)
        np.savez(file, scores=lists.scores_RK, codes=lists.codes_RK, source=lists.source_R)


def merged_parts(dataset: Dataset, workers: int, folder: Path) -> Iterator[Lists]:
    """Yield the lists of all users, chunk by chunk in the order of the codes, from what the workers wrote."""
    m, number, first_W = dataset.manifest, 0, np.zeros(workers, np.int64)
    partition = Partition(m.users, m.buckets, workers)
    while _part(folder, number, 0).exists():
        parts = [np.load(_part(folder, number, worker)) for worker in range(workers)]
        columns = [np.concatenate([part[name] for part in parts]) for name in ("scores", "codes", "source")]
        last_W = first_W + np.array([len(part["source"]) for part in parts])
        own = [partition.row(np.arange(*ends), worker) for worker, ends in enumerate(zip(first_W, last_W, strict=True))]
        order = np.argsort(np.concatenate(own))
        yield Lists(*(column[order] for column in columns))
        number, first_W = number + 1, last_W


def _part(folder: Path, chunk: int, worker: int) -> Path:
    return folder / f"chunk-{chunk:06d}-worker-{worker:05d}.npz"


@contextmanager
def table_writer(out: str | Path) -> Iterator[Callable[[pa.Table], None]]:
    """Yield a function that appends a table to a `.parquet` or `.csv` file, which appears at the end, complete.

    Raises:
        UserError: a file of another kind, or one that cannot be written.
    """
    out = checked_out(out)
    writer = None

    def write(table: pa.Table) -> None:
        nonlocal writer
        if out.suffix == ".csv":  # has no dictionary type
            index, source = table.schema.get_field_index("source"), table["source"].cast(pa.string())
            table = table.set_column(index, "source", source)
        if writer is None:
            kind: Any = pyarrow.csv.CSVWriter if out.suffix == ".csv" else pq.ParquetWriter
            writer = kind(str(partial), table.schema)
        writer.write_table(table)

    try:
        with atomic_file(out) as partial:
            try:
                yield write
            finally:
                if writer is not None:
                    writer.close()
    except OSError as error:
        if error.errno not in UNWRITABLE:
            raise
        raise UserError(f"cannot write {out}: {reason_of(error)}") from None


def checked_out(out: str | Path) -> Path:
    """Return the path of a file to write. Raises UserError for one of another kind, or without a folder."""
    out = expand_user(Path(out))
    if out.suffix not in (".parquet", ".csv"):
        raise UserError(f"{out}: recommendations are written as .parquet or .csv")
    if not out.absolute().parent.is_dir():
        raise UserError(f"cannot write {out}: there is no folder {out.absolute().parent}")
    return out
