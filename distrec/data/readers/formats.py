"""Formats of raw interactions: detect the format of a file and call its reader."""

from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from distrec.core.errors import UserError
from distrec.data.config import DataConfig
from distrec.data.readers import delimited, lightgcn, parquet
from distrec.data.readers.bad_lines import BadLines

SUFFIXES = {".txt": "lightgcn", ".inter": "recbole", ".csv": "csv", ".tsv": "csv", ".parquet": "parquet"}


@dataclass(frozen=True)
class RawPairs:
    """Pairs of one part as read, with duplicates: each column int64 or string."""

    users: pa.ChunkedArray
    items: pa.ChunkedArray
    bad_lines: int = 0


def format_of(path: Path, config: DataConfig) -> str:
    """Return the format of a file. Raises UserError if none is configured and the suffix is unknown."""
    if config.format != "auto":
        return config.format
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(f"{path}: unknown suffix (known: {', '.join(SUFFIXES)}); set data.format")
    return SUFFIXES[path.suffix.lower()]


def options_of(path: Path, config: DataConfig) -> dict[str, str]:
    """Return every setting that affects how a file is read, for the key of the cache."""
    name = format_of(path, config)
    options = {"format": name, "on_bad_line": config.on_bad_line}
    if name in ("csv", "parquet"):
        options |= {"user": config.user_column, "item": config.item_column}
    if name == "csv":
        options["separator"] = _separator(path, config)
    return options


def read(path: Path, config: DataConfig) -> RawPairs:
    """Read one file.

    Raises:
        UserError: an unreadable file, a missing column, or a malformed line under `data.on_bad_line=error`.
    """
    name = format_of(path, config)
    user, item = config.user_column, config.item_column
    bad = BadLines(path, config.on_bad_line, noun="row" if name == "parquet" else "line")
    try:
        if name == "lightgcn":
            users, items = lightgcn.read(path, bad)
        elif name == "parquet":
            users, items = parquet.read(path, user, item, bad)
        elif name == "csv":
            users, items = delimited.read(path, delimited.Dialect(_separator(path, config), True, user, item), bad)
        else:
            users, items = delimited.read(path, delimited.Dialect("\t", False, "user_id", "item_id", typed=True), bad)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None
    return RawPairs(users, items, bad.count)


def _separator(path: Path, config: DataConfig) -> str:
    return "\t" if path.suffix.lower() == ".tsv" else config.separator
