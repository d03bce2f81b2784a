"""Reader of Parquet files: two columns of integers or strings."""

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from distrec.core.errors import UserError
from distrec.data.readers.bad_lines import BadLines
from distrec.data.readers.delimited import find_column


def read(path: Path, user: str, item: str, bad: BadLines) -> tuple[pa.ChunkedArray, pa.ChunkedArray]:
    """The (user, item) pairs of a file, in its order: each column int64, or strings without surrounding blanks.

    Raises:
        UserError: not a Parquet file, a missing column, a column of another type; a null, empty or broken id where bad
            lines are errors. The message gives the number of the row, from 1.
    """
    try:
        names = pq.read_schema(path).names
        find_column(path, names, user)
        find_column(path, names, item)
        table = pq.read_table(path, columns=[user, item], partitioning=None)
    except pa.ArrowException as error:
        raise UserError(f"{path} is not a readable Parquet file: {error}") from None
    columns = [_plain(table.column(name)) for name in (user, item)]
    users, items = (_ids(path, name, column) for name, column in zip((user, item), columns, strict=True))
    good = pc.and_(pc.is_valid(users), pc.is_valid(items))
    if pc.all(good).as_py() is False:
        _report(columns, users, good, bad)
        users, items = users.filter(good), items.filter(good)
    return users, items


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """The column without dictionary coding, text as bytes: Parquet does not promise that a string is UTF-8."""
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    return column.cast(pa.large_binary() if _is_text(kind) else kind)


def _ids(path: Path, name: str, column: pa.ChunkedArray) -> pa.ChunkedArray:
    """A column as int64 or string; an id of no use becomes null."""
    kind = column.type
    if pa.types.is_integer(kind):
        return column.cast(pa.int64()) if kind != pa.uint64() else _unsigned(column)
    if pa.types.is_floating(kind):  # what pandas makes of integers once one of them is missing
        known = pc.if_else(pc.is_nan(column), None, column)
        try:
            return known.cast(pa.int64())
        except pa.ArrowInvalid:
            raise UserError(f"{path}: column {name!r} holds fractions, which are no ids") from None
    if _is_text(kind):
        text = pc.utf8_trim_whitespace(_utf8(column))
        return pc.if_else(pc.equal(text, ""), None, text)
    raise UserError(f"{path}: column {name!r} holds {kind}; ids are integers or strings")


def _unsigned(column: pa.ChunkedArray) -> pa.ChunkedArray:
    try:
        return column.cast(pa.int64())
    except pa.ArrowInvalid:
        return column.cast(pa.string())  # beyond 63 bits an id keeps its digits


def _utf8(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Bytes as strings, null where they are not UTF-8."""
    try:
        return column.cast(pa.large_string())
    except pa.ArrowInvalid:
        return pa.chunked_array([pa.array([_decoded(value) for value in column.to_pylist()], pa.large_string())])


def _decoded(value: bytes | None) -> str | None:
    try:
        return None if value is None else value.decode()
    except UnicodeDecodeError:
        return None


def _report(columns: list[pa.ChunkedArray], users: pa.ChunkedArray, good: pa.ChunkedArray, bad: BadLines) -> None:
    for row in pc.indices_nonzero(pc.invert(good)).to_pylist():
        what = "item" if users[row].is_valid else "user"
        raw = [column[row].as_py() for column in columns]
        shown = [value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else str(value) for value in raw]
        bad.report(row + 1, f"the {what} id is missing, empty or not UTF-8", ", ".join(shown))


def _is_text(kind: pa.DataType) -> bool:
    types = pa.types
    return types.is_string(kind) or types.is_large_string(kind) or types.is_binary(kind) or types.is_large_binary(kind)
