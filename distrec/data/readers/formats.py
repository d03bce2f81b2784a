"""The formats of raw interactions: which one a file has, and its reader."""

from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from distrec.core.errors import UserError
from distrec.data.config import DataConfig
from distrec.data.readers import delimited, lightgcn, parquet
from distrec.data.readers.bad_lines import BadLines

SUFFIXES = {".txt": "lightgcn", ".inter": "recbole", ".csv": "csv", ".tsv": "csv", ".parquet": "parquet"}


@dataclass(frozen=True)
class Raw:
    """The pairs of one part as they were read: each column int64 or string, duplicates and all."""

    users: pa.ChunkedArray
    items: pa.ChunkedArray
    bad_lines: int = 0


def format_of(path: Path, config: DataConfig) -> str:
    """The name of a file's format. Raises UserError where the name does not tell and none is configured."""
    if config.format != "auto":
        return config.format
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(f"{path}: the name does not tell the format ({', '.join(SUFFIXES)}); set data.format")
    return SUFFIXES[path.suffix.lower()]


def options_of(path: Path, config: DataConfig) -> dict[str, str]:
    """Every setting that decides how this file is read, for the key of the cache."""
    kind = format_of(path, config)
    options = {"format": kind, "on_bad_line": config.on_bad_line}
    if kind in ("csv", "parquet"):
        options |= {"user": config.user_column, "item": config.item_column}
    if kind == "csv":
        options["separator"] = _separator(path, config)
    return options


def read(path: Path, config: DataConfig) -> Raw:
    """Reads one file.

    Raises:
        UserError: a file that cannot be read, a missing column; a malformed line where these are errors.
    """
    kind = format_of(path, config)
    bad = BadLines(path, config.on_bad_line, unit="row" if kind == "parquet" else "line")
    try:
        if kind == "lightgcn":
            users, items = lightgcn.read(path, bad)
        elif kind == "parquet":
            users, items = parquet.read(path, config.user_column, config.item_column, bad)
        elif kind == "csv":
            names = config.user_column, config.item_column
            users, items = delimited.read(path, delimited.Dialect(_separator(path, config), True, *names), bad)
        else:
            users, items = delimited.read(path, delimited.Dialect("\t", False, "user_id", "item_id", typed=True), bad)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None
    return Raw(users, items, bad.count)


def _separator(path: Path, config: DataConfig) -> str:
    return "\t" if path.suffix.lower() == ".tsv" else config.separator
