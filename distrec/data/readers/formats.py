"""Formats of raw interactions: recognise the format of each part's files, call its reader, say what was read."""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from distrec.core.errors import UserError
from distrec.core.status import stage
from distrec.data.config import DataConfig
from distrec.data.readers import delimited, lightgcn, parquet
from distrec.data.readers.bad_lines import BadLines
from distrec.data.readers.contents import plain_name, read_bytes
from distrec.data.readers.delimited import Columns
from distrec.data.readers.recognise import Layout, columns_of, recognise
from distrec.data.readers.values import is_number, is_rating

_RATINGS = {
    *("rating", "ratings", "rate", "score", "scores", "star", "stars", "overall", "label", "labels", "target"),
    *("weight", "value", "preference", "feedback", "count", "counts", "plays", "playcount", "play_count"),
    *("click", "clicks", "clicked", "like", "liked", "purchase", "purchased", "response", "hours"),
}
_EVENTS = {"event", "event_type", "action", "behavior", "behavior_type", "interaction_type"}  # texts such as view, buy
_TRUTH = {"0", "1", "0.0", "1.0", "true", "false"}
_TIME = 1e8  # larger numbers in a column without a name are times: seconds since 1970 passed it in 1973
_NULL_LIKE = [
    "nan",
    "NaN",
    "NAN",
    "null",
    "Null",
    "NULL",
    "none",
    "None",
    "NONE",
    "\\N",
    "NA",
    "N/A",
    "n/a",
    "<NA>",
    "undefined",
]


@dataclass(frozen=True)
class RawPairs:
    """Pairs of one part as read, with duplicates: each column int64 or string.

    Attributes:
        times: time of each pair if `data.time_column` is set, int64 or float64 without nulls.
        notes: lines for the log, about what the reader took the file for.
    """

    users: pa.ChunkedArray
    items: pa.ChunkedArray
    bad_lines: int = 0
    times: pa.ChunkedArray | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class PartFiles:
    """Files that are read as one part of a data set, in this order, and their common layout."""

    path: Path
    """The file, or the folder or pattern that stands for several."""
    files: tuple[Path, ...]
    layout: Layout

    def options(self, config: DataConfig) -> dict[str, Any]:
        """Return every setting that affects how the files are read, for the key of the cache."""
        keys = ("user_column", "item_column", "rating_column", "min_rating", "time_column", "null_values")
        settings = {key: getattr(config, key) for key in (*keys, "on_bad_line")}
        return settings | {"format": self.layout.format, "dialect": repr(self.layout.dialect)}


def recognise_parts(parts: Mapping[Any, tuple[Path, tuple[Path, ...]]], config: DataConfig) -> dict[Any, PartFiles]:
    """Recognise the format of each part. What the lines of one leave open, another of the same suffix decides.

    Args:
        parts: path and files of each part.
        config: the format or `auto`, and the settings of columns.

    Raises:
        UserError: an unreadable file, or lines that fit two formats that give different interactions.
    """
    found: dict[Any, list[Layout]] = {}
    for part, (_, files) in parts.items():
        first = next((file for file in files if file.is_file() and file.stat().st_size), files[0])
        try:
            found[part] = recognise(first, config)
        except OSError as error:
            raise _unreadable(first, error) from None
    result = {}
    for part, (path, files) in parts.items():
        layouts, suffix = found[part], plain_name(path).suffix
        others = {found[o][0].format for o in parts if len(found[o]) == 1 and plain_name(parts[o][0]).suffix == suffix}
        agreed = [layout for layout in layouts if len(layouts) == 1 or others == {layout.format}]
        if not agreed:
            raise UserError(_ambiguous(path, *layouts))
        result[part] = PartFiles(path, files, agreed[0])
    return result


def read(part: PartFiles, config: DataConfig) -> RawPairs:
    """Read the files of a part.

    Raises:
        UserError: an unreadable file, a missing column, or a malformed line under `data.on_bad_line=error`.
    """
    layout, nulls = part.layout, config.nulls()
    if layout.format == "lightgcn" and any((config.rating_column, config.time_column, nulls)):
        raise UserError(f"{part.path} is a list of items a line (lightgcn): it has no ratings, times or missing ids")
    files = [file for file in part.files if file.stat().st_size] or part.files[:1]  # Spark also writes empty files
    tables, bad = zip(*[_read_file(file, layout, config) for file in files], strict=True)
    columns = {key: _concatenate([table[key] for table in tables]) for key in tables[0]}
    count, name = len(columns["user"]), part.path.name
    notes = [f"{name}: {_taken_for(part, config)}; {count:,} interactions"]
    if "rating" in columns:
        high = pc.greater_equal(columns["rating"], config.min_rating)
        columns = {key: column.filter(high) for key, column in columns.items()}
        named = "column " * str(config.rating_column).isdecimal() + str(config.rating_column)
        rule = f"{named} >= {config.min_rating:g}"
        if count and not len(columns["user"]):
            raise UserError(f"{part.path}: none of its {count:,} interactions has {rule}")
        notes.append(f"{name}: {len(columns['user']):,} of {count:,} interactions have {rule}; the others are left out")
    elif unused := _unused_rating(part, config):
        notes.append(f"{name}: {unused}")
    notes += [f"{name}: {note}" for note in (*_spanning(bad), *_null_like(columns))]
    total = sum(report.count for report in bad)
    return RawPairs(columns["user"], columns["item"], total, columns.get("time"), tuple(notes))


def _read_file(path: Path, layout: Layout, config: DataConfig) -> tuple[Columns, BadLines]:
    bad = BadLines(path, config.on_bad_line, noun="row" if layout.format == "parquet" else "line")
    nulls = config.nulls()
    stage(f"data: reading {path.name}", f"{bad.noun}s")
    try:
        if layout.format == "lightgcn":
            users, items = lightgcn.read(read_bytes(path), bad)
            return {"user": users, "item": items}, bad
        if layout.dialect is None:
            return parquet.read(path, columns_of(None, config), nulls, bad), bad
        dialect = replace(layout.dialect, nulls=nulls)
        return delimited.read(read_bytes(path), dialect, columns_of(dialect, config), bad), bad
    except OSError as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: OSError) -> UserError:
    return UserError(f"cannot read {path}: {error.strerror or error}")


def _concatenate(columns: list[pa.ChunkedArray]) -> pa.ChunkedArray:
    """Concatenate a column of several files: text if one is text, else fractions if one has fractions."""
    types = {column.type for column in columns}
    if len(types) > 1:
        text = any(not pa.types.is_primitive(dtype) for dtype in types)
        columns = [column.cast(pa.large_string() if text else pa.float64()) for column in columns]
    return pa.chunked_array([chunk for column in columns for chunk in column.chunks], columns[0].type)


def _taken_for(part: PartFiles, config: DataConfig) -> str:
    """Return what the files were taken for, and from which columns users and items were read."""
    layout, dialect = part.layout, part.layout.dialect
    several = f"{len(part.files)} files read as " if len(part.files) > 1 else "read as "
    if layout.format == "lightgcn":
        return several + "lightgcn, user item item ... a line"
    if dialect is None:
        return f"{several}parquet, user in column {config.user_column}, item in {config.item_column}"
    separator = {"\t": "tabs", " ": "blanks"}.get(dialect.separator, repr(dialect.separator))
    text = f"{several}{layout.format} with{'' if dialect.header else 'out'} a header, separated by {separator}"
    wanted = [columns_of(dialect, config)[key] for key in ("user", "item")]
    if not layout.names:
        return text
    user, item = (delimited.find_column(part.path, list(layout.names), name) + 1 for name in wanted)
    return f"{text}, user in column {user}, item in column {item} of {len(layout.names)}"


def _unused_rating(part: PartFiles, config: DataConfig) -> str:
    """Return a line on a column of ratings, labels or kinds of events that is not read, or an empty string."""
    layout = part.layout
    names = parquet.names(part.files[0]) if layout.format == "parquet" else list(layout.names)
    wanted = columns_of(layout.dialect, config).values() if names else ()
    used = {delimited.find_column(part.path, names, name) for name in wanted}
    for number in sorted(set(range(len(names))) - used):
        name, values = names[number], _values(layout, number)
        if name == "":  # an index that pandas wrote
            continue
        if name.lower() in _EVENTS and not all(map(is_rating, values)):
            advice = "write a file of those that should count"
        elif name.lower() in _RATINGS or (_is_unnamed_rating if name == str(number + 1) else _is_label)(values):
            advice = f"data.rating_column={shlex.quote(name)} data.min_rating=... leaves out those below"
        else:
            continue
        shown = f" ({', '.join(sorted(values)[:3])}, ...)" if values else ""
        return f"column {name}{shown} is not used, every line counts as an interaction; {advice}"
    return ""


def _values(layout: Layout, number: int) -> set[str]:
    """Return the values of a column in the first lines; none of a Parquet file."""
    return {row[number].strip() for row in layout.rows if len(row) == len(layout.names)}


def _is_unnamed_rating(values: set[str]) -> bool:
    """Return True for numbers that are no times."""
    return all(is_number(value) and abs(float(value)) < _TIME for value in values) and bool(values)


def _is_label(values: set[str]) -> bool:
    """Return True for both of two truth values."""
    return len(values) > 1 and {value.lower() for value in values} <= _TRUTH


def _spanning(bad: Sequence[BadLines]) -> Iterator[str]:
    if count := sum(report.spanning for report in bad):
        first = next(report for report in bad if report.spanning)
        yield (
            f"{count:,} records of several lines, as quotes enclose line ends, the first in line "
            f"{first.first_spanning} of {first.path.name}; data.quoting=false reads quotes as plain text"
        )


def _null_like(columns: Columns) -> Iterator[str]:
    for key in ("user", "item"):
        if not pa.types.is_integer(columns[key].type):
            odd = columns[key].filter(pc.is_in(columns[key], pa.array(_NULL_LIKE, columns[key].type)))
            if texts := ",".join(pc.unique(odd).to_pylist()):
                yield (
                    f"{len(odd):,} interactions have {key} ids that may stand for missing ones; if they do, set "
                    f"data.null_values='{texts}' data.on_bad_line=skip"
                )


def _ambiguous(path: Path, lists: Layout, pairs: Layout) -> str:
    return (
        f"{path} fits two formats: lightgcn (user item item ... a line: {lists.pairs:,} interactions in the first "
        f"{lists.lines:,} lines) and pairs (user item, then columns that are not ids: {pairs.pairs:,}); set "
        "data.format=lightgcn or data.format=pairs"
    )
