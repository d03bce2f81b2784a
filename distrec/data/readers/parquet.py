"""Reader of Parquet files: two columns of integers or strings."""

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from distrec.core.errors import UserError
from distrec.data.readers.bad_lines import BadLines
from distrec.data.readers.delimited import find_column


def read(path: Path, user: str, item: str, bad: BadLines) -> tuple[pa.ChunkedArray, pa.ChunkedArray]:
    """Read the (user, item) pairs of a file, in its order: each column int64, or strings without surrounding blanks.

    Raises:
        UserError: not a Parquet file, a missing column, a column of another type; a null, empty or invalid id under
            the policy `error`, with the number of the row, from 1.
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
    """Decode dictionaries, and cast text to bytes: Parquet does not guarantee that strings are UTF-8."""
    dtype = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    return column.cast(pa.large_binary() if _is_text(dtype) else dtype)


def _ids(path: Path, name: str, column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Cast a column to int64 or string; invalid ids become null."""
    dtype = column.type
    if pa.types.is_integer(dtype):
        try:
            return column.cast(pa.int64())
        except pa.ArrowInvalid:  # uint64 beyond 63 bits
            return column.cast(pa.string())
    if pa.types.is_floating(dtype):  # pandas stores integers with missing values as floats
        known = pc.if_else(pc.is_nan(column), None, column)
        try:
            return known.cast(pa.int64())
        except pa.ArrowInvalid:
            raise UserError(f"{path}: column {name!r} holds fractions; ids are integers or strings") from None
    if _is_text(dtype):
        text = pc.utf8_trim_whitespace(_utf8(column))
        return pc.if_else(pc.equal(text, ""), None, text)
    raise UserError(f"{path}: column {name!r} holds {dtype}; ids are integers or strings")


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


def _report(columns: list[pa.ChunkedArray], users: pa.ChunkedArray, good: pa.ChunkedArray, bad: BadLines) -> None:
    for row in pc.indices_nonzero(pc.invert(good)).to_pylist():
        name = "item" if users[row].is_valid else "user"
        raw = [column[row].as_py() for column in columns]
        shown = [value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else str(value) for value in raw]
        bad.report(row + 1, f"the {name} id is missing, empty or not UTF-8", ", ".join(shown))


def _is_text(dtype: pa.DataType) -> bool:
    return dtype in (pa.string(), pa.large_string(), pa.binary(), pa.large_binary())
