"""A prepared data set: a folder of Parquet files and a manifest, opened by any process.

- `manifest.json`: counts, number of buckets, fingerprint.
- `users.parquet`, `items.parquet`: raw id and training degree, in the order of the codes.
- `buckets/00000.parquet` and so on, one for each p below P: the interactions of the users with code mod P = p, as
  user, item (int32) and part (int8), by part, then user, then item.
"""

import enum
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from distrec.core.config import Section, parse
from distrec.core.errors import UserError

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
_QUANTILES = {"min": 0.0, "25 %": 0.25, "median": 0.5, "75 %": 0.75, "90 %": 0.9, "99 %": 0.99, "max": 1.0}


class Part(enum.IntEnum):
    """What an interaction is for. The numbers stand in the files."""

    TRAIN = 0
    VALID = 1
    TEST = 2


class DuplicateCounts(Section):
    """Repeated pairs that were merged, by the part that brought them."""

    train: int
    """In the training file, before anything was carved out of it."""
    valid: int
    """In the validation file."""
    test: int
    """In the test file."""


class Manifest(Section):
    """What a prepared folder holds."""

    format_version: int
    """Version of the folder's layout."""
    name: str
    """Name of the data set."""
    source: str
    """Where it came from, for a reader."""
    test_fraction: float
    """Share of each user's interactions held out for testing; 0 if the source brought the part, or has none."""
    valid_fraction: float
    """The same for validation."""
    split_seed: int
    """Seed of what was held out."""
    users: int
    """Users with an interaction in any part."""
    items: int
    """Items with an interaction in any part."""
    buckets: int
    """Buckets of users, P."""
    train: int
    """Training interactions."""
    valid: int
    """Validation interactions."""
    test: int
    """Test interactions."""
    duplicates: int
    """Repeated pairs merged, in all parts."""
    duplicates_by_part: DuplicateCounts
    """The same by part."""
    overlap: int
    """Held-out pairs left out because training (or, for validation pairs, the test part) has them."""
    bad_lines: int
    """Malformed lines left out."""
    users_without_train: int
    """Users with no training interaction."""
    items_without_train: int
    """Items with no training interaction."""
    fingerprint: str
    """Hash of vocabularies, interactions, parts and P: equal data has an equal fingerprint."""

    def count(self, part: Part) -> int:
        """Interactions of a part."""
        return (self.train, self.valid, self.test)[part]


@dataclass(frozen=True)
class Dataset:
    """A prepared folder. Holds its path and manifest alone, so it is cheap to open and to send to another process."""

    path: Path
    manifest: Manifest

    @classmethod
    def open(cls, path: Path) -> "Dataset":
        """Opens a prepared folder. Raises UserError if the manifest is missing, broken, or of another version."""
        return cls(path, _read_manifest(path / MANIFEST))

    def interactions(self, part: Part, buckets: Iterable[int]) -> tuple[np.ndarray, np.ndarray]:
        """The interactions of a part: (users, items), (N,) int32 each.

        Buckets come in the order given; within one, by user, then item. Raises UserError for a missing or broken file.
        """
        users, items = [np.empty(0, np.int32)], [np.empty(0, np.int32)]
        for bucket in buckets:
            assert 0 <= bucket < self.manifest.buckets, bucket
            table = _read(bucket_file(self.path, bucket))
            parts = table["part"].to_numpy()
            first, last = np.searchsorted(parts, (part, part + 1))
            users.append(table["user"].to_numpy()[first:last])
            items.append(table["item"].to_numpy()[first:last])
        return np.concatenate(users), np.concatenate(items)

    def user_degrees(self) -> np.ndarray:
        """Training interactions of each user: (users,) int64."""
        return _read(self.path / "users.parquet")["degree"].to_numpy()

    def item_degrees(self) -> np.ndarray:
        """Training interactions of each item: (items,) int64."""
        return _read(self.path / "items.parquet")["degree"].to_numpy()

    def user_ids(self) -> pa.Array:
        """Raw id of each user, in the order of the codes: int64 or large_string."""
        return _combined(_read(self.path / "users.parquet")["id"])

    def item_ids(self) -> pa.Array:
        """Raw id of each item, in the order of the codes: int64 or large_string."""
        return _combined(_read(self.path / "items.parquet")["id"])

    def summary(self) -> list[tuple[str, str]]:
        """What `distrec info` shows: (label, value) rows."""
        m = self.manifest
        repeats = m.duplicates_by_part
        merged = f"{repeats.train:,} train, {repeats.valid:,} valid, {repeats.test:,} test"
        total = m.train + m.valid + m.test
        return [
            ("name", m.name),
            ("source", m.source),
            ("folder", str(self.path)),
            ("users", f"{m.users:,} ({m.users_without_train:,} without training interactions)"),
            ("items", f"{m.items:,} ({m.items_without_train:,} without training interactions)"),
            ("interactions", f"{total:,}: {m.train:,} train, {m.valid:,} valid, {m.test:,} test"),
            ("density", f"{100 * total / (m.users * m.items):.4g} %"),
            ("training interactions of a user", _quantiles(self.user_degrees())),
            ("training interactions of an item", _quantiles(self.item_degrees())),
            ("buckets", f"{m.buckets:,}"),
            ("duplicates merged", f"{m.duplicates:,}: {merged}"),
            ("overlap left out", f"{m.overlap:,}"),
            ("bad lines left out", f"{m.bad_lines:,}"),
            ("fingerprint", m.fingerprint),
        ]


def bucket_file(folder: Path, bucket: int) -> Path:
    """The file of a bucket."""
    return folder / "buckets" / f"{bucket:05d}.parquet"


def _quantiles(degrees: np.ndarray) -> str:
    values = np.quantile(degrees, list(_QUANTILES.values()), method="inverted_cdf")
    return ", ".join(f"{name} {value:,}" for name, value in zip(_QUANTILES, values, strict=True))


def _read_manifest(path: Path) -> Manifest:
    try:
        tree: Any = json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{path.parent} is not a prepared data set: it has no {path.name}") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except ValueError as error:  # broken JSON or broken UTF-8
        raise UserError(f"{path} is damaged ({error}); delete the folder and prepare it again") from None
    version = tree.get("format_version") if isinstance(tree, dict) else None
    if not isinstance(version, int):
        raise UserError(f"{path} is no manifest of a prepared data set: it has no format_version")
    if version > FORMAT_VERSION:
        raise UserError(f"{path} has format {version}; this distrec reads format {FORMAT_VERSION}: install a newer one")
    if version < FORMAT_VERSION:
        raise UserError(f"{path} has the old format {version}; delete the folder and prepare it again")
    return parse(Manifest, tree, where=f"{path}: ")


def _read(path: Path) -> pa.Table:
    try:
        with pq.ParquetFile(path) as file:
            return file.read(use_threads=False)
    except FileNotFoundError:
        raise UserError(
            f"{path} is missing; delete the data set's folder and prepare it "
            "again (on a cluster: data.cache must lie where every node sees it)"
        ) from None
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{path} is damaged ({error}); delete the data set's folder and prepare it again") from None


def _combined(column: pa.ChunkedArray) -> pa.Array:
    return pa.concat_arrays(column.chunks)
