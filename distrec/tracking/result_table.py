"""Rows of results as text: the same columns and digits in the terminal and in `results.md`."""

from collections.abc import Mapping, Sequence

Row = Mapping[str, object]


def columns(rows: Sequence[Row]) -> list[str]:
    """Return all keys in the order of first appearance."""
    return list(dict.fromkeys(name for row in rows for name in row))


def short(value: object) -> str:
    """Return a value as text, a float with four significant digits."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def texts(rows: Sequence[Row], name: str) -> list[str]:
    """Format the cells of a column. Floats get 4 decimals (metrics), or 1 if a value reaches 10 (seconds)."""
    values = [row.get(name) for row in rows]
    decimals = 1 if any(isinstance(v, float) and 10 <= abs(v) < float("inf") for v in values) else 4
    return ["" if v is None else f"{v:.{decimals}f}" if isinstance(v, float) else str(v) for v in values]


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
