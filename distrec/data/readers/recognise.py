"""Recognise the format of a file from its first lines; the suffix decides only what the lines leave open.

Two formats have neither header nor mark and share lines of integers: LightGCN's lists (`user item item ...`) and pairs
with further columns (`user item weight`). Lists have lines of different lengths, and a user on one line; pairs have
lines of one length, and users that recur. Lines that fit both are not decided here.
"""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal

from distrec.core.errors import UserError
from distrec.data.config import DataConfig
from distrec.data.readers import lightgcn
from distrec.data.readers.contents import plain_name, read_bytes
from distrec.data.readers.delimited import Dialect, column_names, records
from distrec.data.readers.values import is_number

SUFFIXES = (".txt", ".inter", ".csv", ".tsv", ".parquet", ".pq", ".data", ".dat", ".rating")
Format = Literal["lightgcn", "recbole", "csv", "pairs", "parquet"]

# Earlier ones are taken where several divide all lines alike. A blank stands for several.
SEPARATORS = ("\t", ",", ";", "|", "::", "\x01", " ", "~", "^", "#", ":")
_SAMPLE = 256 * 1024  # bytes
_ROWS = 1000  # lines that are divided by each separator
_MOST_COLUMNS = 8  # without a header: longer lines of integers are lists, and other ones need names
_MOST_WIDTHS = 3  # numbers of columns in a file of pairs of which some lack a value or have one too many
_TYPED = re.compile(r"[^:]+:(token|float)(_seq)?")


@dataclass(frozen=True)
class Layout:
    """Format of the files of a part, and what their first lines show.

    Attributes:
        dialect: syntax of delimited text.
        names: columns of delimited text.
        rows: up to ten lines of delimited text, as fields.
        lines: lines that were looked at.
        pairs: interactions in these lines.
    """

    format: Format
    dialect: Dialect | None = None
    names: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()
    lines: int = 0
    pairs: int = 0


def recognise(path: Path, config: DataConfig) -> list[Layout]:
    """Return the layout of a file; two if its first lines fit two formats that give different interactions.

    Raises:
        OSError: the file cannot be read.
        UserError: not text, or text that is neither lists nor divided into columns.
    """
    suffix = plain_name(path).suffix.lower()
    if config.format in ("parquet", "lightgcn"):
        return [Layout(config.format)]
    if config.format == "auto" and (suffix in (".parquet", ".pq") or _is_parquet(path)):
        return [Layout("parquet")]
    sample = _first_lines(path)
    if not sample.strip():
        known: dict[str, Format] = {".txt": "lightgcn", ".inter": "recbole"}
        name = known.get(suffix, "csv") if config.format == "auto" else config.format
        return [Layout(name, Dialect(",", True, header=name != "pairs"))]
    if config.format != "auto" or _names_columns(config):
        return [_delimited(path, sample, config)]
    return _lists_or_columns(path, sample, suffix, config)


def columns_of(dialect: Dialect | None, config: DataConfig) -> dict[str, str]:
    """Return the wanted column names by what they hold. RecBole's names are the default where headers are typed."""
    names = {"user": config.user_column, "item": config.item_column}
    if dialect is not None and dialect.typed:
        names = {key: f"{key}_id" if name == key else name for key, name in names.items()}
    if config.min_rating is not None and config.rating_column is not None:
        names["rating"] = config.rating_column
    return names | ({"time": config.time_column} if config.time_column is not None else {})


def _names_columns(config: DataConfig) -> bool:
    """Return True for settings that only files of columns have."""
    other = config.separator not in ("auto", " ", "\t")
    return other or config.header is True or any((config.columns, config.rating_column, config.time_column))


def _is_parquet(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"PAR1"


def _first_lines(path: Path) -> bytes:
    data = read_bytes(path, _SAMPLE)
    return data if len(data) < _SAMPLE - 3 else data[: max(data.rfind(b"\n"), data.rfind(b"\r")) + 1] or data


def _lists_or_columns(path: Path, sample: bytes, suffix: str, config: DataConfig) -> list[Layout]:
    lines = [line for line in sample.splitlines() if line.strip()]
    tokens = [line.split() for line in lines]
    header = len(lines) > 1 and len(tokens[0]) > 1 and not any(is_number(_text(token)) for token in tokens[0])
    valid = [lightgcn.is_list(line) for line in lines]
    if _TYPED.match(_text(lines[0])) or sum(valid) < len(lines) / 2 or header and len(tokens[0]) == len(tokens[1]):
        return [_delimited(path, sample, config)]
    lists = Layout("lightgcn", lines=len(lines), pairs=sum(map(len, tokens)) - len(lines))
    counts = Counter(len(line) for line, good in zip(tokens, valid, strict=True) if good)
    width = counts.most_common(1)[0][0]
    repeated = len(lines) - len({line[0] for line in tokens})
    if width == 1 or width > _MOST_COLUMNS or (len(counts) == 1 and width == 2):
        # Two integers a line are one interaction in either format. The reader of lists refuses what is no integer.
        return [lists] if suffix == ".txt" or width != 2 or not all(valid) else [_delimited(path, sample, config)]
    if len(counts) > 1 and (len(counts) > _MOST_WIDTHS or repeated < 0.1 * len(lines)):
        return [lists]
    pairs = _delimited(path, sample, config)
    if len(counts) == 1 and len(pairs.names) != width:
        raise UserError(f"{path} separates columns by tabs and by blanks; use one of them, or set data.format=lightgcn")
    if len(counts) == 1 and (repeated or _fractions(tokens)):
        return [pairs]
    return [lists, pairs]


def _fractions(tokens: list[list[bytes]]) -> bool:
    """Return True if there are numbers that are no integers, all of them behind the first two columns."""
    odd = [n for line in tokens for n, token in enumerate(line) if not lightgcn.is_list(token)]
    return bool(odd) and min(odd) >= 2


def _text(token: bytes) -> str:
    return token.decode("utf-8", "surrogateescape")


def _delimited(path: Path, sample: bytes, config: DataConfig) -> Layout:
    separators = SEPARATORS if config.separator == "auto" else (config.separator,)
    rows = {mark: _rows(sample, _dialect(mark, config)) for mark in separators}
    rows = {mark: found for mark, found in rows.items() if found}
    dialect, header = None, config.header is not False and config.format != "pairs"
    for mark in rows if header else ():
        if dialect is None and config.format in ("auto", "recbole") and _is_typed(rows[mark][0]):
            dialect = _dialect(mark, config, typed=True)
    named = not (config.user_column.isdecimal() and config.item_column.isdecimal())  # numbers also occur in data
    for mark in rows if header and named else ():
        if dialect is None and {config.user_column, config.item_column} <= set(_stripped(rows[mark][0])):
            dialect = _dialect(mark, config)
    if dialect is None:
        mark = _separator(rows, separators)
        dialect = _dialect(mark, config, typed=config.format == "recbole")
        header = _has_header(path, rows.get(mark, [[""]]), config)
    found = _rows(sample, dialect)
    dialect = Dialect(dialect.separator, dialect.quoted, header, dialect.typed, _names(path, found, header, config))
    names = tuple(column_names(found[0] if found else [], dialect))
    body = found[int(header) :]
    if not header and (config.header, config.columns, config.format) == ("auto", None, "auto"):
        _check_width(path, names)
    name: Format = "recbole" if dialect.typed else "csv" if header or config.format == "csv" else "pairs"
    return Layout(name, dialect, names, tuple(map(tuple, body[:10])), len(found), len(body))


def _check_width(path: Path, names: tuple[str, ...]) -> None:
    if len(names) > _MOST_COLUMNS:
        advice = "set data.header=false if user and item are the first two, or name them in data.columns"
        raise UserError(f"{path} has {len(names)} columns and no header: {advice}")


def _dialect(separator: str, config: DataConfig, typed: bool = False) -> Dialect:
    """Return the dialect of a separator. Quotes are plain text where RecBole, MovieLens and Hive write them so."""
    quoted = config.quoting
    if quoted == "auto":
        quoted = len(separator) == 1 and separator.isprintable() or (separator == "\t" and not typed)
    return Dialect(separator, quoted, typed=typed)


def _rows(sample: bytes, dialect: Dialect) -> list[list[str]]:
    return [record.fields for record in islice(records(sample, dialect), _ROWS) if not record.error]


def _stripped(fields: list[str]) -> list[str]:
    return [field.strip() for field in fields]


def _is_typed(fields: list[str]) -> bool:
    return len(fields) > 1 and all(_TYPED.fullmatch(field.strip()) for field in fields)


def _separator(rows: Mapping[str, list[list[str]]], known: tuple[str, ...]) -> str:
    """Return the separator that divides nearly all lines into the same number of columns.

    Of several the first whose two first columns hold none of the others: a date behind them is divided by `:`, and
    `1;2;3,5` by `,`, yet neither is their separator.
    """
    fitting = []
    for mark, found in rows.items():
        width, frequency = Counter(map(len, found)).most_common(1)[0]
        if width > 1 and frequency >= 0.9 * len(found):
            fitting.append(mark)
    fitting = [mark for mark in fitting if mark != ":" or "::" not in fitting]
    pure = [
        mark
        for mark in fitting
        if not any(other in field for row in rows[mark] for field in row[:2] for other in fitting if other != mark)
    ]
    return (pure or fitting or ["," if "," in known else known[0]])[0]


def _has_header(path: Path, rows: list[list[str]], config: DataConfig) -> bool:
    """Return whether the first line names the columns: in a column of numbers below it is text."""
    if config.format in ("recbole", "pairs") or config.header != "auto":
        return config.format == "recbole" or (config.format != "pairs" and config.header is True)
    first, body = _stripped(rows[0]), [row for row in rows[1:] if len(row) == len(rows[0])]
    numeric = [bool(body) and all(is_number(row[n]) for row in body) for n in range(len(first))]
    if any(below and name and not is_number(name) for below, name in zip(numeric, first, strict=True)):
        return True
    if any(is_number(name) and (below or not body) for below, name in zip(numeric, first, strict=True)):
        return False
    if config.columns is not None:
        return [name.lower() for name in first] == [name.lower() for name in config.column_names()]
    if not (config.user_column.isdecimal() and config.item_column.isdecimal()):
        return True
    raise UserError(
        f"{path}: the first line may be a header or data: {', '.join(first)}; set data.header=true or false"
    )


def _names(path: Path, rows: list[list[str]], header: bool, config: DataConfig) -> tuple[str, ...]:
    """Return names for the first columns: configured, or user and item without a header."""
    width = len(rows[0]) if rows else 0
    if config.columns is None:
        return () if header else ("user", "item")
    names = config.column_names()
    if len(names) > width:
        raise UserError(f"{path} has {width} columns; data.columns names {len(names)}")
    return tuple(str(n) if name in ("-", "_", "") else name for n, name in enumerate(names, 1))
