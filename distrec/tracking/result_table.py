"""Rows of results as text: the same columns and digits in the terminal and in `results.md`."""

import math
from collections.abc import Mapping, Sequence

Row = Mapping[str, object]


def columns(rows: Sequence[Row]) -> list[str]:
    """Return all keys in the order of first appearance."""
    return list(dict.fromkeys(name for row in rows for name in row))


def short(value: object) -> str:
    """Return a value as text, a float with four significant digits."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def texts(rows: Sequence[Row], name: str) -> list[str]:
    """Format the cells of a column. Floats get 4 decimals (metrics), from 10 on 1, as do all of a column of durations,
    of which none is below 1 and one reaches 10.
    """
    values = [row.get(name) for row in rows]
    sizes = [abs(value) for value in values if isinstance(value, float) and math.isfinite(value)]
    coarse = 1.0 if min(sizes, default=0) >= 1 and max(sizes) >= 10 else 10.0
    return ["" if v is None else _text(v, coarse) if isinstance(v, float) else str(v) for v in values]


def _text(value: float, coarse: float) -> str:
    return f"{value:.1f}" if abs(value) >= coarse else f"{value:.4f}"


def is_numeric(rows: Sequence[Row], name: str) -> bool:
    """Return True if a column holds only numbers, which are right-aligned."""
    return all(isinstance(row[name], int | float) for row in rows if row.get(name) is not None)


def markdown_table(rows: Sequence[Row]) -> str:
    """Return a Markdown table, padded to be readable as plain text; empty for no rows."""
    if not rows:
        return ""
    names = columns(rows)
    cells = [[text.replace("|", r"\|") for text in texts(rows, name)] for name in names]
    widths = [max(3, len(name), *map(len, column)) for name, column in zip(names, cells, strict=True)]
    right = [is_numeric(rows, name) for name in names]

    def line(row: Sequence[str]) -> str:
        padded = [c.rjust(w) if r else c.ljust(w) for c, w, r in zip(row, widths, right, strict=True)]
        return f"| {' | '.join(padded)} |"

    rule = [f"{'-' * (w - 1)}:" if r else "-" * w for w, r in zip(widths, right, strict=True)]
    return "\n".join([line(names), line(rule), *map(line, zip(*cells, strict=True))]) + "\n"
