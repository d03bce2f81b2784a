"""Reader of delimited text with a header: CSV, TSV and RecBole's atomic `.inter` files.

pyarrow reads the usual file. It does not report line numbers, and it reads an unclosed quote as a field that spans all
lines below, which would drop them silently. A file that pyarrow rejects, that has an empty id, or that has a quote
anywhere but around a whole field of one line is therefore read again, record by record, by Python's csv module, which
is slower.
"""

import csv
import difflib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from distrec.core.errors import UserError
from distrec.data.readers.bad_lines import BadLines

_BOM = b"\xef\xbb\xbf"
_Columns = tuple[pa.ChunkedArray, pa.ChunkedArray]


@dataclass(frozen=True)
class Dialect:
    """Syntax of a file: the separator, whether fields may be quoted, and the names of the two columns.

    With `typed`, header fields are `name:type`, and columns are matched by name alone.
    """

    separator: str
    quoted: bool
    user: str
    item: str
    typed: bool = False


@dataclass(frozen=True)
class _Record:
    number: int  # of its first line, from 1
    text: str
    fields: list[str]
    error: str = ""


def read(path: Path, dialect: Dialect, bad: BadLines) -> _Columns:
    """Read the (user, item) pairs of a file as two string columns without surrounding blanks, in the order of the file.

    Raises:
        UserError: an empty file, a missing column, an unclosed quote; a malformed line under the policy `error`. A line
            is malformed if its number of fields differs from the header's, or if an id is empty or not UTF-8.
    """
    data = path.read_bytes().removeprefix(_BOM)
    header = next(_records(data, dialect), None)
    if header is None:
        raise UserError(f"{path} is empty: it must start with a header line that names its columns")
    names = header.fields
    user, item = (find_column(path, names, name, dialect.typed) for name in (dialect.user, dialect.item))
    columns = _read_fast(data, dialect, len(names), user, item) if header.number == 1 else None
    return columns if columns is not None else _read_records(data, dialect, len(names), user, item, bad)


def find_column(path: Path, names: list[str], wanted: str, typed: bool = False) -> int:
    """Return the index of a column. Raises UserError that lists the columns of the file, the most similar first."""
    plain = [(name.split(":")[0] if typed else name).strip() for name in names]
    if plain.count(wanted) == 1:
        return plain.index(wanted)
    if wanted in plain:
        raise UserError(f"{path} has {plain.count(wanted)} columns named {wanted!r}")
    near = difflib.get_close_matches(wanted, plain, n=len(plain), cutoff=0.5)
    listed = ", ".join(near + [name for name in plain if name not in near])
    advice = "" if typed else f". {_column_advice(plain)}"
    raise UserError(f"{path} has no column {wanted!r}; its columns: {listed}{advice}")


def _column_advice(names: list[str]) -> str:
    other = [mark for mark in ",;|\t" if len(names) == 1 and mark in names[0]]
    if other:
        return f"The header looks separated by {other[0]!r}: set data.separator='{other[0]}'"
    return "The first line must be a header; set data.user_column and data.item_column to its names"


def _read_fast(data: bytes, dialect: Dialect, width: int, user: int, item: int) -> _Columns | None:
    """Return the columns, or None if the file must be read record by record."""
    quotes = dialect.quoted and b'"' in data
    if quotes and not _plainly_quoted(data, dialect.separator):
        return None
    names = [str(index) for index in range(width)]
    wanted = [names[user], names[item]]
    try:
        table = pyarrow.csv.read_csv(
            pa.BufferReader(data),
            read_options=pyarrow.csv.ReadOptions(column_names=names, skip_rows=1),
            parse_options=pyarrow.csv.ParseOptions(delimiter=dialect.separator, quote_char='"' if quotes else False),
            convert_options=pyarrow.csv.ConvertOptions(
                include_columns=wanted, column_types=dict.fromkeys(wanted, pa.string()), strings_can_be_null=False
            ),
        )
    except pa.ArrowInvalid:
        return None
    users, items = (pc.utf8_trim_whitespace(table.column(name)) for name in wanted)
    if pc.any(pc.equal(users, "")).as_py() or pc.any(pc.equal(items, "")).as_py():
        return None
    return users, items


def _plainly_quoted(data: bytes, separator: str) -> bool:
    """Return True if every pair of quotes encloses a whole field that contains no line end."""
    text = np.frombuffer(data, np.uint8)
    quotes = np.flatnonzero(text == ord('"'))
    if len(quotes) % 2:
        return False
    opening, closing = quotes[::2], quotes[1::2]
    line_end = (text == ord("\n")) | (text == ord("\r"))
    # Padded at both ends, so that edge[i] describes byte i - 1: the start and the end of the file also delimit fields.
    edge = np.concatenate([[True], line_end | (text == ord(separator)), [True]])
    breaks = np.flatnonzero(line_end)
    whole = edge[opening].all() and edge[closing + 2].all()
    return bool(whole and (np.searchsorted(breaks, opening) == np.searchsorted(breaks, closing)).all())


def _read_records(data: bytes, dialect: Dialect, width: int, user: int, item: int, bad: BadLines) -> _Columns:
    users: list[str] = []
    items: list[str] = []
    records = _records(data, dialect)
    next(records)  # the header
    for record in records:
        if reason := _malformed(record, width, user, item):
            if record.error and record.text.count("\n") > 1:
                # The lines inside the quote may be valid: skipping them as one bad line would hide the loss.
                raise bad.error(record.number, f"a quote is not closed where its field ends ({reason})", record.text)
            bad.report(record.number, reason, record.text)
            continue
        users.append(record.fields[user].strip())
        items.append(record.fields[item].strip())
    return pa.chunked_array([pa.array(users, pa.string())]), pa.chunked_array([pa.array(items, pa.string())])


def _malformed(record: _Record, width: int, user: int, item: int) -> str:
    """Return the reason why a record is malformed, or an empty string."""
    if record.error:
        return record.error
    if len(record.fields) != width:
        return f"{len(record.fields)} column{'s' * (len(record.fields) != 1)} where the header has {width}"
    for name, index in (("user", user), ("item", item)):
        field = record.fields[index]
        if not field.strip():
            return f"empty {name} id"
        if not field.isascii() and any("\udc80" <= letter <= "\udcff" for letter in field):
            return f"the {name} id is not UTF-8"
    return ""


def _records(data: bytes, dialect: Dialect) -> Iterator[_Record]:
    """Yield the records of a file, header first, without blank lines. Invalid UTF-8 becomes lone surrogates."""
    consumed: list[str] = []

    def lines() -> Iterator[str]:
        for line in data.splitlines(keepends=True):
            consumed.append(line.decode("utf-8", "surrogateescape"))
            yield consumed[-1]

    quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if dialect.quoted else csv.QUOTE_NONE
    reader = csv.reader(lines(), delimiter=dialect.separator, quoting=quoting, strict=True)
    number = 1
    while True:
        consumed.clear()
        try:
            fields, error = next(reader), ""
        except StopIteration:
            return
        except csv.Error as failure:
            fields, error = [], str(failure)
        if fields or error:
            yield _Record(number, "".join(consumed), fields, error)
        number += len(consumed)
