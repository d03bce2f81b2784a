"""Values of the optional columns: ratings as float64, times as int64 or float64."""

import re
from datetime import datetime

import pyarrow as pa
import pyarrow.compute as pc

# What both Python and Arrow parse; neither infinity nor NaN.
_NUMBER = re.compile(r"-?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_DATE = re.compile(r"\d{4}-\d\d-\d\d([ T]\d\d:\d\d(:\d\d(\.\d{1,9})?)?(Z|[+-]\d\d:?\d\d)?)?", re.ASCII)
_NANOSECONDS = r"(\.\d{6})\d{1,3}(Z|[+-]\d\d:?\d\d)?$"
_TRUTH = {"true": "1", "false": "0"}


def is_number(text: str) -> bool:
    """Return True for a finite decimal number."""
    return _NUMBER.fullmatch(text.strip()) is not None


def is_time(text: str) -> bool:
    """Return True for a number, or a date with or without a time of day in ISO 8601: `2024-05-01 12:30:00`."""
    if not _DATE.fullmatch(text.strip()):
        return is_number(text)
    try:
        datetime.fromisoformat(text.strip())
    except ValueError:
        return False
    return True


def is_rating(text: str) -> bool:
    """Return True for a finite decimal number, and for True and False, which are 1 and 0."""
    return is_number(text) or text.strip().lower() in _TRUTH


def parse_ratings(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Parse text, or cast numbers and truth values, to float64. Raises pa.ArrowInvalid."""
    if not is_text(column.type):
        return column.cast(pa.float64())
    text = pc.utf8_trim_whitespace(column)
    for word, number in _TRUTH.items():
        text = pc.replace_substring_regex(text, f"(?i)^{word}$", number)
    return text.cast(pa.float64())


def parse_times(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return times as int64 (integers as they are, dates in microseconds since 1970, UTC), or float64 for fractions.

    Raises:
        pa.ArrowInvalid: another text, or text that mixes numbers and dates.
    """
    if pa.types.is_floating(column.type):
        return column.cast(pa.float64())
    if pa.types.is_boolean(column.type):
        raise pa.ArrowInvalid("booleans are not times")
    if not is_text(column.type):
        return _microseconds(column) if pa.types.is_temporal(column.type) else column.cast(pa.int64())
    text = pc.utf8_trim_whitespace(column)
    dates = pc.match_substring(text, ":")
    if pc.any(dates).as_py():
        text = pc.if_else(dates, pc.replace_substring_regex(text, _NANOSECONDS, r"\1\2"), text)
    targets = (pa.int64(), pa.float64(), pa.timestamp("us"), pa.timestamp("us", "UTC"))
    for target in targets:
        try:
            values = text.cast(target)
        except pa.ArrowInvalid:
            continue
        return _microseconds(values) if pa.types.is_temporal(target) else values
    raise pa.ArrowInvalid("neither numbers alone nor dates of one kind alone")


def _microseconds(column: pa.ChunkedArray) -> pa.ChunkedArray:
    return column.cast(pa.timestamp("us", getattr(column.type, "tz", None)), safe=False).cast(pa.int64())


def is_text(dtype: pa.DataType) -> bool:
    """Return True for strings, and for bytes, which may be text."""
    texts = (pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.large_binary(), pa.binary_view())
    return dtype in texts
