"""Reader of Parquet files: columns of integers or strings, and of ratings and times."""

from collections.abc import Mapping
from functools import reduce
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from distrec.core.errors import UserError
from distrec.data.readers.bad_lines import BadLines
from distrec.data.readers.delimited import Columns, find_column
from distrec.data.readers.values import is_rating, is_text, is_time, parse_ratings, parse_times


def names(path: Path) -> list[str]:
    """Return the names of the columns of a file. Raises UserError if it is not a Parquet file."""
    try:
        return list(pq.read_schema(path).names)
    except pa.ArrowException as error:
        raise UserError(f"{path} is not a readable Parquet file: {error}") from None


def read(path: Path, wanted: Mapping[str, str], nulls: tuple[str, ...], bad: BadLines) -> Columns:
    """Read columns of a file, in its order: ids as int64, or strings without surrounding blanks, others as numbers.

    Args:
        path: the file.
        wanted: name or number of each column to read, by what it holds.
        nulls: text of missing ids.
        bad: policy for malformed rows.

    Raises:
        UserError: not a Parquet file, a missing column, a column of another type; a missing or invalid id, rating or
            time under the policy `error`, with the number of the row, from 1.
    """
    present = names(path)
    columns = {
        key: present[find_column(path, present, name, "Set data.user_column and data.item_column")]
        for key, name in wanted.items()
    }
    if columns["user"] == columns["item"]:
        raise UserError(f"{path}: user and item are both column {columns['user']!r}; set data.item_column")
    try:
        table = pq.read_table(path, columns=list(dict.fromkeys(columns.values())), partitioning=None)
    except pa.ArrowException as error:
        raise UserError(f"{path} is not a readable Parquet file: {error}") from None
    raw = {key: _plain(table.column(name)) for key, name in columns.items()}
    parsed = {key: _parsed(path, key, columns[key], column, nulls) for key, column in raw.items()}
    valid = {key: pc.is_valid(column) for key, column in parsed.items()}
    good = reduce(pc.and_, valid.values())
    if pc.all(good).as_py() is not False:
        return parsed
    for row in pc.indices_nonzero(pc.invert(good)).to_pylist():
        key = next(key for key, mask in valid.items() if not mask[row].as_py())
        what = f"{key} id is missing, empty or not UTF-8" if key in ("user", "item") else f"{key} is missing or invalid"
        bad.report(row + 1, f"the {what}", ", ".join(_shown(column[row].as_py()) for column in raw.values()))
    return {key: column.filter(good) for key, column in parsed.items()}


def _shown(value: object) -> str:
    return value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else str(value)


def _parsed(path: Path, key: str, name: str, column: pa.ChunkedArray, nulls: tuple[str, ...]) -> pa.ChunkedArray:
    """Return ids, or ratings or times as numbers; what is missing or invalid is null."""
    if key in ("user", "item"):
        ids = _ids(path, name, column)
        return ids if pa.types.is_integer(ids.type) else pc.if_else(pc.is_in(ids, pa.array(nulls, ids.type)), None, ids)
    parse, valid = (parse_ratings, is_rating) if key == "rating" else (parse_times, is_time)
    text = _utf8(column) if is_text(column.type) else None
    try:
        try:
            values = parse(column if text is None else text)
        except pa.ArrowException:
            if text is None:
                raise
            words = pc.unique(text).drop_null()
            words = words.filter(pa.array(map(valid, words.to_pylist()), pa.bool_()))
            values = parse(pc.if_else(pc.is_in(text, words), text, None))
        return pc.if_else(pc.is_finite(values), values, None)
    except pa.ArrowException as error:
        raise UserError(f"{path}: column {name!r} cannot be read as {key}s: {error}") from None


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Decode dictionaries, and cast text to bytes: Parquet does not guarantee that strings are UTF-8."""
    dtype = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    return column.cast(pa.large_binary() if is_text(dtype) else dtype)


def _ids(path: Path, name: str, column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Cast a column to int64 or string; invalid ids become null."""
    dtype = column.type
    if pa.types.is_integer(dtype):
        try:
            return column.cast(pa.int64())
        except pa.ArrowInvalid:  # uint64 beyond 63 bits
            return column.cast(pa.string())
    if pa.types.is_floating(dtype) or pa.types.is_decimal(dtype):
        return _integers(path, name, column)
    if is_text(dtype):
        text = pc.utf8_trim_whitespace(_utf8(column))
        return pc.if_else(pc.equal(text, ""), None, text)
    raise UserError(f"{path}: column {name!r} holds {dtype}; ids are integers or strings")


def _integers(path: Path, name: str, column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Cast fractions to int64, NaN to null: pandas stores integers with missing values as floats.

    Raises:
        UserError: fractions that are no integers, or so large that different integers may have become one.
    """
    if pa.types.is_floating(column.type):
        column = pc.if_else(pc.is_nan(column), None, column)
        limit = 2 ** {16: 11, 32: 24, 64: 53}[column.type.bit_width]
        if pc.any(pc.greater(pc.abs(column.cast(pa.float64())), limit)).as_py():
            raise UserError(
                f"{path}: column {name!r} holds {column.type} numbers beyond {limit:,}, where different ids are "
                "rounded to one; write the ids as integers or strings"
            )
    try:
        return column.cast(pa.int64())
    except pa.ArrowInvalid:
        raise UserError(f"{path}: column {name!r} holds fractions; ids are integers or strings") from None


def _utf8(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Decode bytes as UTF-8; invalid ones become null."""

    def decoded(value: bytes | None) -> str | None:
        try:
            return None if value is None else value.decode()
        except UnicodeDecodeError:
            return None

    try:
        return column.cast(pa.large_string())
    except pa.ArrowInvalid:
        return pa.chunked_array([pa.array(map(decoded, column.to_pylist()), pa.large_string())])
