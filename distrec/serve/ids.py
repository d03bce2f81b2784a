"""The ids of users or items as their owner writes them, and files of such ids."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from distrec.core import columns
from distrec.core.errors import UserError, reason_of
from distrec.core.section import expand_user

UNKNOWN = -1

_SEPARATORS = {".csv": ",", ".tsv": "\t"}


class Ids:
    """The ids of one entity: entry c is the id with code c."""

    def __init__(self, ids: pa.Array) -> None:
        self.ids = ids

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def _integers(self) -> bool:
        return bool(pa.types.is_integer(self.ids.type))

    def codes(self, wanted: Sequence[Any]) -> np.ndarray:
        """Return the code of each id, int64, -1 for those that are unknown.

        Ids are compared as text, as when the data were read: 7 and "7" are one id, "007" is another.
        """
        if not self._integers:
            found = pc.index_in(columns.texts([str(value) for value in wanted]), value_set=self.ids)
            return _codes(found)
        values = [_integer(str(value)) for value in wanted]
        integers = columns.numeric(np.array([0 if value is None else value for value in values], np.int64))
        found = pc.index_in(integers, value_set=self.ids.cast(pa.int64()))
        codes = _codes(found)
        codes[[value is None for value in values]] = UNKNOWN
        return codes

    def missing(self, wanted: Sequence[Any]) -> list[Any]:
        """Return those ids that are unknown, each once."""
        known = self.codes(wanted) != UNKNOWN
        return list(dict.fromkeys(value for value, is_known in zip(wanted, known, strict=True) if not is_known))

    def of(self, codes: np.ndarray) -> pa.Array:
        """Return the ids with some codes."""
        return self.ids.take(columns.numeric(codes))

    def column(self, wanted: Sequence[Any]) -> pa.Array:
        """Return ids as a column: of the type of the known ones if all can be, else text."""
        integers = [_integer(str(value)) for value in wanted] if self._integers else [None]
        if None in integers:
            return columns.texts([str(value) for value in wanted])
        return columns.numeric(np.array(integers, np.int64))


def _codes(found: pa.Array) -> np.ndarray:
    """Return indices as int64, -1 for null."""
    codes = columns.values(found, np.int32).astype(np.int64)
    codes[columns.values(found.is_null().cast(pa.uint8()), np.uint8) != 0] = UNKNOWN
    return codes


def as_list(ids: Any) -> list[Any]:
    """Return one id, or several, as a list."""
    if isinstance(ids, pa.Scalar):
        return [ids.as_py()]
    if isinstance(ids, (str, bytes, int, np.integer)):
        return [ids]
    return list(ids.to_pylist() if isinstance(ids, (pa.Array, pa.ChunkedArray)) else ids)


def read_ids(path: Path, column: str) -> list[Any]:
    """Read ids from a file: a text file with one id a line, or a column of a CSV, TSV or Parquet file.

    Args:
        path: the file.
        column: column of a table to read; not needed if it has one column.

    Raises:
        UserError: a file that cannot be read, or that has no such column or no id.
    """
    path = expand_user(path)
    if path.suffix not in (*_SEPARATORS, ".parquet"):
        lines = [line.strip() for line in _text(path).splitlines()]
        ids: list[Any] = [line for line in lines if line]
    else:
        ids = _column(read_table(path), column, path).drop_null().to_pylist()
    if not ids:
        raise UserError(f"{path} holds no id")
    return ids


def read_histories(path: Path, user_column: str, item_column: str) -> dict[Any, list[Any]]:
    """Read the items of new users: those of one user, as `read_ids` reads them, or a table of users and items.

    Returns:
        Items by user; `new` names the user of a file without users.
    """
    path = expand_user(path)
    if path.suffix in (*_SEPARATORS, ".parquet"):
        table = read_table(path)
        if table.num_columns > 1:
            histories: dict[Any, list[Any]] = {}
            found = (_column(table, name, path).to_pylist() for name in (user_column, item_column))
            for user, item in zip(*found, strict=True):
                if user is None or item is None:
                    raise UserError(f"{path}: a row lacks its user or its item")
                histories.setdefault(user, []).append(item)
            return histories
    return {"new": read_ids(path, item_column)}


def read_table(path: Path) -> pa.Table:
    """Read a CSV or TSV file, whose values stay text, or a Parquet file. Raises UserError."""
    try:
        if path.suffix == ".parquet":
            return pq.read_table(path)
        options = pyarrow.csv.ParseOptions(delimiter=_SEPARATORS[path.suffix])
        head = pyarrow.csv.open_csv(path, parse_options=options).schema
        text = pyarrow.csv.ConvertOptions(column_types={name: pa.string() for name in head.names})
        table = pyarrow.csv.read_csv(path, parse_options=options, convert_options=text)
        trimmed = [pc.utf8_trim_whitespace(column) for column in table.columns]  # as the data are read
        return pa.Table.from_arrays([pc.if_else(pc.equal(t, ""), None, t) for t in trimmed], names=table.column_names)
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"cannot read {path}: {reason_of(error)}") from None


def _column(table: pa.Table, name: str, path: Path) -> pa.ChunkedArray:
    if (count := table.column_names.count(name)) > 1:
        raise UserError(f"{path} has {count} columns named {name}: keep one")
    if count:
        return table[name]
    if table.num_columns == 1:
        return table[0]
    if name.isdecimal() and 1 <= int(name) <= table.num_columns:  # as in data.user_column
        return table[int(name) - 1]
    raise UserError(f"{path} has no column {name}; it has {', '.join(table.column_names)}")


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {reason_of(error)}") from None


def _integer(text: str) -> int | None:
    """Return the integer that a text is the canonical form of, else None."""
    try:
        value = int(text)
    except ValueError:
        return None
    return value if str(value) == text and -(2**63) <= value < 2**63 else None
