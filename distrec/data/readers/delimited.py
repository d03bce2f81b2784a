"""Reader of delimited text with a header: CSV, TSV and RecBole's atomic `.inter` files.

pyarrow reads the usual file. It cannot say on which line an error stands, and it takes a quote that is never closed
for a field that runs on over the lines below, which would lose them in silence. So whenever a file is refused, has an
empty id, or has quotes anywhere but around a whole field of one line, Python's csv module reads it again record by
record: right for every file, and slower.
"""

import csv
import difflib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from distrec.core.errors import UserError
from distrec.data.readers.bad_lines import BadLines

_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Dialect:
    """How a file is written: the separator, whether fields may be quoted, and the names of the two columns.

    With `typed`, the header reads `name:type` and the names are matched without the type.
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


def read(path: Path, dialect: Dialect, bad: BadLines) -> tuple[pa.ChunkedArray, pa.ChunkedArray]:
    """The (user, item) pairs of a file as two string columns without surrounding blanks, in the order of the file.

    Raises:
        UserError: an empty file, a missing column, a quote never closed; a malformed line where these are errors. A
            line is malformed if it has not as many fields as the header, or if an id is empty or not UTF-8.
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
    """The position of a column. Raises UserError with the columns that exist, the nearest first."""
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


def _read_fast(
    data: bytes, dialect: Dialect, width: int, user: int, item: int
) -> tuple[pa.ChunkedArray, pa.ChunkedArray] | None:
    """The columns, or None where the file needs the careful reader."""
    quotes = dialect.quoted and b'"' in data
    if quotes and not _plainly_quoted(data, dialect.separator):
        return None
    names = [str(position) for position in range(width)]
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
    """Whether every quote opens or closes a whole field, and no line ends between the two."""
    text = np.frombuffer(data, np.uint8)
    quotes = np.flatnonzero(text == ord('"'))
    if len(quotes) % 2:
        return False
    opening, closing = quotes[::2], quotes[1::2]
    line_end = (text == ord("\n")) | (text == ord("\r"))
    # One more edge at either end: before the first byte and after the last a field ends too.
    edge = np.concatenate([[True], line_end | (text == ord(separator)), [True]])
    breaks = np.flatnonzero(line_end)
    whole = edge[opening].all() and edge[closing + 2].all()
    return bool(whole and (np.searchsorted(breaks, opening) == np.searchsorted(breaks, closing)).all())


def _read_records(
    data: bytes, dialect: Dialect, width: int, user: int, item: int, bad: BadLines
) -> tuple[pa.ChunkedArray, pa.ChunkedArray]:
    users: list[str] = []
    items: list[str] = []
    records = _records(data, dialect)
    next(records)  # the header
    for record in records:
        if reason := _malformed(record, width, user, item):
            if record.error and record.text.count("\n") > 1:
                # The lines it swallowed may all be good: leaving them out as one bad line would hide the loss.
                raise bad.error(record.number, f"a quote is not closed where its field ends ({reason})", record.text)
            bad.report(record.number, reason, record.text)
            continue
        users.append(record.fields[user].strip())
        items.append(record.fields[item].strip())
    return pa.chunked_array([pa.array(users, pa.string())]), pa.chunked_array([pa.array(items, pa.string())])


def _malformed(record: _Record, width: int, user: int, item: int) -> str:
    """Why a record is of no use; empty where it is good."""
    if record.error:
        return record.error
    if len(record.fields) != width:
        return f"{len(record.fields)} column{'s' * (len(record.fields) != 1)} where the header has {width}"
    for name, position in (("user", user), ("item", item)):
        field = record.fields[position]
        if not field.strip():
            return f"empty {name} id"
        if not field.isascii() and any("\udc80" <= letter <= "\udcff" for letter in field):
            return f"the {name} id is not UTF-8"
    return ""


def _records(data: bytes, dialect: Dialect) -> Iterator[_Record]:
    """The records of a file, header first, without blank lines. Bytes that are not UTF-8 become lone surrogates."""
    taken: list[str] = []

    def lines() -> Iterator[str]:
        for line in data.splitlines(keepends=True):
            taken.append(line.decode("utf-8", "surrogateescape"))
            yield taken[-1]

    quoting = csv.QUOTE_MINIMAL if dialect.quoted else csv.QUOTE_NONE
    reader = csv.reader(lines(), delimiter=dialect.separator, quoting=quoting, strict=True)
    number = 1
    while True:
        taken.clear()
        try:
            fields, error = next(reader), ""
        except StopIteration:
            return
        except csv.Error as failure:
            fields, error = [], str(failure)
        if fields or error:
            yield _Record(number, "".join(taken), fields, error)
        number += len(taken)
