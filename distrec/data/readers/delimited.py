"""Reader of delimited text: CSV, TSV, RecBole's atomic `.inter` files, and files without a header.

pyarrow reads the usual file. It does not report line numbers, and it reads an unclosed quote as a field that spans all
lines below, which would drop them silently. A file that pyarrow rejects, that has a missing id, or that has a quote
anywhere but around a whole field of one line is therefore read again, record by record, by Python's csv module, which
is slower.
"""

import csv
import difflib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from distrec.core.errors import UserError
from distrec.core.status import advance
from distrec.data.readers.bad_lines import BadLines
from distrec.data.readers.values import is_rating, is_time, parse_ratings, parse_times

Columns = dict[str, pa.ChunkedArray]
"""Columns of one file by what they hold: user, item and, where configured, rating and time."""

_PARSE: dict[str, Callable[[pa.ChunkedArray], pa.ChunkedArray]] = {"rating": parse_ratings, "time": parse_times}
_STAND_INS = "\x1f\x1e\x1d\x1c\x02\x03\x04\x05"  # for separators of several bytes, which pyarrow does not accept


@dataclass(frozen=True)
class Dialect:
    """Syntax of a file.

    Attributes:
        separator: any text. A blank stands for one or more blanks, but for exactly one where fields are quoted.
        quoted: a field in double quotes may contain separators and line ends.
        header: the first line names the columns.
        typed: fields of the header are `name:type`; columns are matched by name alone.
        names: names of the columns, in place of those of a header.
        nulls: text, besides the empty field, of a missing id.
    """

    separator: str
    quoted: bool
    header: bool = True
    typed: bool = False
    names: tuple[str, ...] = ()
    nulls: tuple[str, ...] = ()


@dataclass(frozen=True)
class Record:
    """One line, or several with line ends in quotes."""

    number: int  # of its first line, from 1
    lines: int
    text: str
    fields: list[str]
    error: str = ""


def read(data: bytes, dialect: Dialect, wanted: Mapping[str, str], bad: BadLines) -> Columns:
    """Read columns in the order of the text: ids as strings without surrounding blanks, ratings and times as numbers.

    Args:
        data: content of the file.
        dialect: its syntax.
        wanted: name or number of each column to read, by what it holds.
        bad: policy for malformed lines; names the file.

    Raises:
        UserError: an empty file, a missing column, an unclosed quote; a malformed line under the policy `error`. A line
            is malformed if its number of fields differs from that of the first line, if an id is missing or not UTF-8,
            or if a rating or time is not one.
    """
    first = next(records(data, dialect), None)
    if first is None:
        needs = ": it must start with a header line that names its columns" if dialect.header else ""
        raise UserError(f"{bad.path} is empty{needs}")
    names = column_names(first.fields, dialect)
    advice = "" if dialect.typed else _column_advice(names, dialect.header)
    index = {key: find_column(bad.path, names, name, advice) for key, name in wanted.items()}
    if index["user"] == index["item"]:
        raise UserError(
            f"{bad.path}: user and item are both column {index['user'] + 1}; set data.user_column and data.item_column"
        )
    plain, single = _single_byte(data, dialect)
    fast = _read_fast(plain, single, len(first.fields), index) if not dialect.header or first.number == 1 else None
    header = [(first.fields if dialect.header else names)[index[key]].strip() for key in ("user", "item")]
    if fast is None or _repeats(fast, header):
        return _read_records(data, dialect, len(first.fields), index, bad, header)
    if single.separator != dialect.separator:
        for key in ("user", "item"):
            fast[key] = pc.replace_substring(fast[key], single.separator, dialect.separator)
    return fast


def column_names(fields: list[str], dialect: Dialect) -> list[str]:
    """Return the name of each column: configured, from the header, or its number from 1."""
    if dialect.header:
        found = [(name.split(":")[0] if dialect.typed else name).strip() for name in fields]
    else:
        found = [str(number) for number in range(1, len(fields) + 1)]
    return [*dialect.names[: len(found)], *found[len(dialect.names) :]]


def find_column(path: Path, names: list[str], wanted: str, advice: str = "") -> int:
    """Return the index of a column by its name or, if no column has this name, its number from 1.

    Raises UserError that lists the columns of the file, the most similar first, and the advice.
    """
    if names.count(wanted) == 1:
        return names.index(wanted)
    if wanted in names:
        raise UserError(f"{path} has {names.count(wanted)} columns named {wanted!r}")
    if wanted.isdecimal() and 1 <= int(wanted) <= len(names):
        return int(wanted) - 1
    near = difflib.get_close_matches(wanted, names, n=len(names), cutoff=0.5)
    listed = ", ".join(near + [name for name in names if name not in near])
    raise UserError(f"{path} has no column {wanted!r}; its columns: {listed}" + (f". {advice}" if advice else ""))


def _column_advice(names: list[str], header: bool) -> str:
    other = [mark for mark in ",;|\t" if len(names) == 1 and mark in names[0]]
    if other:
        typed = other[0].replace("\t", r"\t")
        return f"The header looks separated by {other[0]!r}: set data.separator='{typed}'"
    if len(names) == 1:
        return "No separator of columns was recognised: set data.separator"
    if not header:
        return "It has no header: name its columns in order, data.columns=user,item,..., or give columns by number"
    return (
        "The first line must be a header; set data.user_column and data.item_column to its names, or data.header=false "
        "if the file has none"
    )


def _single_byte(data: bytes, dialect: Dialect) -> tuple[bytes, Dialect]:
    """Return the data with a separator of a single byte, and their dialect. Line ends stay where they are."""
    if dialect.separator == " " and not (dialect.quoted and b'"' in data):
        data = re.sub(rb"(?m)^ +| +(?=\r?$)", b"", data)
        return re.sub(rb" {2,}", b" ", data), dialect
    separator = dialect.separator.encode()
    if len(separator) == 1:
        return data, dialect
    unused = next((mark for mark in _STAND_INS if mark.encode() not in data), None)
    if unused is None:
        raise UserError(f"a file with control characters cannot be separated by {dialect.separator!r}")
    return data.replace(separator, unused.encode()), replace(dialect, separator=unused)


def _read_fast(data: bytes, dialect: Dialect, width: int, index: Mapping[str, int]) -> Columns | None:
    """Return the columns, or None if the file must be read record by record."""
    quotes = dialect.quoted and b'"' in data
    if quotes and not _plainly_quoted(data, dialect.separator):
        return None
    names = [str(number) for number in range(width)]
    wanted = list(dict.fromkeys(names[number] for number in index.values()))
    try:
        table = pyarrow.csv.read_csv(
            pa.BufferReader(data),
            read_options=pyarrow.csv.ReadOptions(column_names=names, skip_rows=int(dialect.header)),
            parse_options=pyarrow.csv.ParseOptions(delimiter=dialect.separator, quote_char='"' if quotes else False),
            convert_options=pyarrow.csv.ConvertOptions(
                include_columns=wanted, column_types=dict.fromkeys(wanted, pa.string()), strings_can_be_null=False
            ),
        )
        columns = {key: table.column(names[number]) for key, number in index.items()}
        for key in columns:
            columns[key] = _PARSE[key](columns[key]) if key in _PARSE else pc.utf8_trim_whitespace(columns[key])
    except pa.ArrowInvalid:
        return None
    missing = pa.array(["", *dialect.nulls])
    valid = [pc.is_finite(c) if key in _PARSE else pc.invert(pc.is_in(c, missing)) for key, c in columns.items()]
    return None if any(pc.all(mask).as_py() is False for mask in valid) else columns


def _repeats(columns: Columns, header: list[str]) -> bool:
    """Return whether the names of the two columns stand in a line below, as in files that were concatenated."""
    found = pc.and_(*(pc.equal(columns[key], name) for key, name in zip(("user", "item"), header, strict=True)))
    return pc.any(found).as_py() is True


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


def _read_records(
    data: bytes, dialect: Dialect, width: int, index: Mapping[str, int], bad: BadLines, header: Sequence[str] = ()
) -> Columns:
    values: dict[str, list[str]] = {key: [] for key in index}
    found = records(data, dialect)
    if dialect.header:
        next(found)
    for record in found:
        advance(1)
        if reason := _malformed(record, width, index, dialect, header):
            if record.error and record.lines > 1:
                # The lines inside the quote may be valid: skipping them as one bad line would hide the loss.
                reason = f"a quote is not closed where its field ends ({reason})"
                raise bad.error(record.number, reason, record.text, "; data.quoting=false reads quotes as plain text")
            bad.report(record.number, reason, record.text)
            continue
        if record.lines > 1:
            bad.spanning, bad.first_spanning = bad.spanning + 1, bad.first_spanning or record.number
        for key, number in index.items():
            values[key].append(record.fields[number].strip())
    columns = {key: pa.chunked_array([pa.array(texts, pa.string())]) for key, texts in values.items()}
    try:
        return {key: _PARSE[key](column) if key in _PARSE else column for key, column in columns.items()}
    except pa.ArrowInvalid as error:
        raise UserError(f"{bad.path}: cannot read its ratings or times: {error}") from None


def _malformed(record: Record, width: int, index: Mapping[str, int], dialect: Dialect, header: Sequence[str]) -> str:
    """Return the reason why a record is malformed, or an empty string."""
    if record.error:
        return record.error
    if len(record.fields) != width:
        other = "header" if dialect.header else "first line"
        return f"{len(record.fields)} column{'s' * (len(record.fields) != 1)} where the {other} has {width}"
    if [record.fields[index[key]].strip() for key in ("user", "item")] == list(header) and not header[0].isdecimal():
        return "a header in the middle of the data"
    for key, number in index.items():
        field = record.fields[number].strip()
        if key in _PARSE:
            if not (is_rating if key == "rating" else is_time)(field):
                return f"the {key} is not a number" + " or a date in ISO 8601" * (key == "time")
        elif not field:
            return f"empty {key} id"
        elif field in dialect.nulls:
            return f"the {key} id is missing"
        elif not field.isascii() and any("\udc80" <= letter <= "\udcff" for letter in field):
            return f"the {key} id is not UTF-8"
    return ""


def records(data: bytes, dialect: Dialect) -> Iterator[Record]:
    """Yield the records of a file, header first, without blank lines. Invalid UTF-8 becomes lone surrogates."""
    data, single = _single_byte(data, dialect)
    consumed: list[str] = []

    def lines() -> Iterator[str]:
        for line in data.splitlines(keepends=True):
            consumed.append(line.decode("utf-8", "surrogateescape"))
            yield consumed[-1]

    quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if dialect.quoted else csv.QUOTE_NONE
    # A quote may follow a blank after the separator: "ana", "green tea".
    blanks = dialect.quoted and single.separator not in " \t"
    reader = csv.reader(lines(), delimiter=single.separator, quoting=quoting, strict=True, skipinitialspace=blanks)
    number = 1
    while True:
        consumed.clear()
        try:
            fields, error = next(reader), ""
        except StopIteration:
            return
        except csv.Error as failure:
            fields, error = [], str(failure)
        text = "".join(consumed)
        if text.strip(" \r\n") or error:
            if single.separator != dialect.separator:
                text = text.replace(single.separator, dialect.separator)
                fields = [field.replace(single.separator, dialect.separator) for field in fields]
            yield Record(number, len(consumed), text, fields, error)
        number += len(consumed)
