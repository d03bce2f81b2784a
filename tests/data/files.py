"""Helpers that write interactions as files and read a prepared data set back as pairs of raw ids."""

import csv
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from distrec.data.config import DataConfig
from distrec.data.dataset import Dataset, Part
from distrec.data.prepare import prepare

SMALL = [(3, 10), (3, 7), (1, 10), (1, 2), (1, 30), (2, 2)]


def write(path: Path, pairs, fmt=None):
    """Write (user, item) pairs in the format of the suffix; return the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    suffix = fmt or path.suffix
    if suffix == ".txt":
        users = list(dict.fromkeys(user for user, _ in pairs))
        lines = [" ".join([str(user), *(str(item) for other, item in pairs if other == user)]) for user in users]
        path.write_text("".join(line + "\n" for line in lines))
    elif suffix == ".inter":
        rows = "".join(f"{item}\t3.5\t{user}\n" for user, item in pairs)
        path.write_text("item_id:token\trating:float\tuser_id:token\n" + rows)
    elif suffix == ".parquet":
        pq.write_table(pa.table({"item": [item for _, item in pairs], "user": [user for user, _ in pairs]}), path)
    else:
        with path.open("w", newline="") as file:
            writer = csv.writer(file, delimiter="\t" if suffix == ".tsv" else ",")
            writer.writerows([("time", "user", "item"), *((9, user, item) for user, item in pairs)])
    return path


def run(tmp_path: Path, source: Path | str, log=None, **settings) -> Dataset:
    """Prepare with few buckets and, by default, without a held-out part."""
    settings = {"valid_fraction": 0, "buckets": 3, "cache": tmp_path / "cache"} | settings
    return prepare(DataConfig(source=str(source), **settings), log or (lambda line: None))


def raw_pairs(dataset: Dataset, part: Part = Part.TRAIN) -> list[tuple]:
    """Return the (raw user, raw item) pairs of a part, in the order of the buckets."""
    users, items = dataset.interactions(part, range(dataset.manifest.buckets))
    user_ids, item_ids = dataset.user_ids().to_pylist(), dataset.item_ids().to_pylist()
    return [(user_ids[user], item_ids[item]) for user, item in zip(users, items, strict=True)]
