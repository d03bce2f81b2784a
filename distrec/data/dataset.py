"""Prepared data set: a folder of Parquet files and a manifest, which any process can open.

- `manifest.json`: counts, number of buckets P, fingerprint.
- `users.parquet`, `items.parquet`: raw id and training degree, in the order of the codes.
- `buckets/00000.parquet`, ..., one for each p < P: the interactions of the users with code mod P = p, in columns user,
  item (int32) and part (int8), sorted by part, user, item.
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

from distrec.core import columns
from distrec.core.config import parse
from distrec.core.errors import UserError
from distrec.core.section import Section

FORMAT_VERSION = 2  # 1 chose held-out parts by codes, not by ids
MANIFEST = "manifest.json"
_QUANTILES = {"min": 0.0, "25 %": 0.25, "median": 0.5, "75 %": 0.75, "90 %": 0.9, "99 %": 0.99, "max": 1.0}


class Part(enum.IntEnum):
    """Role of an interaction. The values are stored in the files."""

    TRAIN = 0
    VALID = 1
    TEST = 2


class Manifest(Section):
    """Content of a prepared folder."""

    format_version: int
    """Version of the folder's layout."""
    name: str
    """Name of the data set."""
    source: str
    """Human-readable origin: the files and their formats."""
    split: str
    """How parts were held out, `data.split`."""
    test_fraction: float
    """Share of the interactions held out as the test part; 0 if the source has one, none or one of each user's was."""
    valid_fraction: float
    """The same for validation."""
    split_seed: int
    """Seed of the held-out split."""
    min_user: int
    """Fewest interactions of a user, in all parts together."""
    min_item: int
    """Fewest interactions of an item."""
    filtered_users: int
    """Users left out by `min_user` and `min_item`."""
    filtered_items: int
    """Items left out by them."""
    filtered_interactions: int
    """Interactions left out by them."""
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
    duplicates_by_part: dict[str, int]
    """The same for the `train`, `valid` and `test` file of the source."""
    overlap: int
    """Test pairs dropped because training has them, and validation pairs because training or the test part has them."""
    bad_lines: int
    """Malformed lines dropped."""
    users_without_train: int
    """Users with no training interaction."""
    items_without_train: int
    """Items with no training interaction."""
    of_untrained_users: dict[str, int]
    """Interactions of the `valid` and `test` part whose user has no training interaction."""
    with_untrained_items: dict[str, int]
    """The same of items."""
    notes: tuple[str, ...]
    """Notes of the readers on the files."""
    id_notes: tuple[str, ...]
    """Warnings about ids that do not meet."""
    fingerprint: str
    """Hash of vocabularies, interactions, parts and P: equal data have equal fingerprints."""

    def count(self, part: Part) -> int:
        """Return the number of interactions of a part."""
        return (self.train, self.valid, self.test)[part]

    def filtered(self) -> list[str]:
        """Return a line on what `min_user` and `min_item` left out, if they are set."""
        if self.min_user == self.min_item == 1:
            return []
        return [
            f"data.min_user={self.min_user}, data.min_item={self.min_item}: {self.filtered_users:,} users, "
            f"{self.filtered_items:,} items, {self.filtered_interactions:,} interactions left out"
        ]

    def untrained(self) -> list[str]:
        """Return a line on the users, and one on the items without training interactions, if there are any."""
        lines = []
        if self.users_without_train:
            lines.append(
                f"{self.users_without_train:,} of {self.users:,} users have no training interactions: they are not "
                f"evaluated ({self._shares(self.of_untrained_users)} interactions)"
            )
        if self.items_without_train:
            lines.append(
                f"{self.items_without_train:,} of {self.items:,} items have no training interactions: rankings leave "
                "them out unless eval.untrained_items=include; held-out interactions with them "
                f"({self._shares(self.with_untrained_items)}) count as misses"
            )
        return lines

    def _shares(self, counts: dict[str, int]) -> str:
        total = {"valid": self.valid, "test": self.test}
        return ", ".join(f"{count:,} of {total[part]:,} {part}" for part, count in counts.items() if total[part])


@dataclass(frozen=True)
class Dataset:
    """Prepared folder. Holds only its path and manifest, so it is cheap to open and to send to another process."""

    path: Path
    manifest: Manifest

    @classmethod
    def open(cls, path: Path) -> "Dataset":
        """Open a prepared folder. Raises UserError if the manifest is missing, broken, or of another version."""
        return cls(path, _read_manifest(path / MANIFEST))

    def interactions(self, part: Part, buckets: Iterable[int]) -> tuple[np.ndarray, np.ndarray]:
        """Read the interactions of a part in some buckets: (users, items), int32 each.

        Buckets keep the order given; a bucket is sorted by user, then item. Raises UserError for a missing or broken
        file.
        """
        users, items = [np.empty(0, np.int32)], [np.empty(0, np.int32)]
        for bucket in buckets:
            assert 0 <= bucket < self.manifest.buckets, bucket
            table = _read(bucket_file(self.path, bucket))
            parts = _values(table, "part", np.int8)
            first, last = np.searchsorted(parts, (part, part + 1))
            users.append(_values(table, "user", np.int32)[first:last])
            items.append(_values(table, "item", np.int32)[first:last])
        return np.concatenate(users), np.concatenate(items)

    def user_degrees(self) -> np.ndarray:
        """Read the number of training interactions of each user: (users,) int64."""
        return _values(_read(self.path / "users.parquet", ["degree"]), "degree", np.int64).copy()

    def item_degrees(self) -> np.ndarray:
        """Read the number of training interactions of each item: (items,) int64."""
        return _values(_read(self.path / "items.parquet", ["degree"]), "degree", np.int64).copy()

    def user_ids(self) -> pa.Array:
        """Read the raw id of each user, in the order of the codes: int64 or large_string."""
        return _read(self.path / "users.parquet")["id"].combine_chunks()

    def item_ids(self) -> pa.Array:
        """Read the raw id of each item, in the order of the codes: int64 or large_string."""
        return _read(self.path / "items.parquet")["id"].combine_chunks()

    def summary(self) -> list[tuple[str, str]]:
        """Return the (label, value) rows that `distrec info` prints."""
        m = self.manifest
        merged = ", ".join(f"{count:,} {part}" for part, count in m.duplicates_by_part.items())
        total = m.train + m.valid + m.test
        return [
            ("name", m.name),
            ("source", m.source),
            ("folder", str(self.path)),
            ("users", f"{m.users:,} ({m.users_without_train:,} without training interactions)"),
            ("items", f"{m.items:,} ({m.items_without_train:,} without training interactions)"),
            ("interactions", f"{total:,}: {m.train:,} train, {m.valid:,} valid, {m.test:,} test"),
            ("split", f"{m.split}: test {m.test_fraction:g}, valid {m.valid_fraction:g}, seed {m.split_seed}"),
            ("density", f"{100 * total / (m.users * m.items):.4g} %"),
            ("training interactions of a user", _quantiles(self.user_degrees())),
            ("training interactions of an item", _quantiles(self.item_degrees())),
            ("buckets", f"{m.buckets:,}"),
            ("duplicates merged", f"{m.duplicates:,}: {merged}"),
            ("overlap left out", f"{m.overlap:,}"),
            ("bad lines left out", f"{m.bad_lines:,}"),
            *(("note", note) for note in (*m.notes, *m.id_notes, *m.filtered(), *m.untrained())),
            ("fingerprint", m.fingerprint),
        ]


def bucket_file(folder: Path, bucket: int) -> Path:
    """Return the file of a bucket."""
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
        raise UserError(f"{path} is not the manifest of a prepared data set: it has no format_version")
    if version > FORMAT_VERSION:
        raise UserError(f"{path} has format {version}; this distrec reads format {FORMAT_VERSION}: install a newer one")
    if version < FORMAT_VERSION:
        raise UserError(f"{path} has the old format {version}; delete the folder and prepare it again")
    return parse(Manifest, tree, where=f"{path}: ")


def _values(table: pa.Table, name: str, dtype: type[np.generic]) -> np.ndarray:
    column = table[name].combine_chunks()
    assert column.type == pa.from_numpy_dtype(np.dtype(dtype)), (name, column.type)
    return columns.values(column, dtype)


def _read(path: Path, columns: list[str] | None = None) -> pa.Table:
    try:
        with pq.ParquetFile(path) as file:
            return file.read(columns, use_threads=False)
    except FileNotFoundError:
        raise UserError(
            f"{path} is missing; delete the data set's folder and prepare it again "
            "(on a cluster, data.cache must be on a file system that all nodes share)"
        ) from None
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{path} is damaged ({error}); delete the data set's folder and prepare it again") from None
