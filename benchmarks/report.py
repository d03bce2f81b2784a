"""Rows of a benchmark: printed as a table, and written as JSON for comparisons between runs."""

import argparse
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from distrec.cli.progress import results_table
from distrec.tracking.environment import hardware, versions


@dataclass(frozen=True)
class Row:
    """One measured value."""

    name: str
    figure: float | None
    """The value, None if it cannot be measured yet."""
    units: str
    spread: str = ""
    """Range of the repetitions."""
    bar: str = ""
    """The requirement on the value, if there is one."""
    holds: bool | None = None
    """Whether the value meets the requirement."""
    versions: dict[str, str] = field(default_factory=versions)
    hardware: str = field(default_factory=hardware)


def median_row(name: str, values: Sequence[float], units: str) -> Row:
    """Return a row with the median of repetitions and their range."""
    return Row(name, statistics.median(values), units, f"{min(values):.4g} to {max(values):.4g}, {len(values)} times")


def bar_row(
    name: str,
    values: Sequence[float],
    units: str,
    most: float | None = None,
    least: float | None = None,
    packages: Mapping[str, str] | None = None,
) -> Row:
    """Return a row with the median of repetitions and their quartiles (the range, if there are fewer than four).

    Args:
        name: name of the row.
        values: one value for each repetition.
        units: units of the values.
        most: requirement: the median is at most this.
        least: requirement: the median is at least this.
        packages: versions to list beside those of this environment.
    """
    figure = statistics.median(values)
    low, high = (min(values), max(values)) if len(values) < 4 else statistics.quantiles(values, n=4)[::2]
    spread = f"{low:.3g} to {high:.3g}, {len(values)} times" if len(values) > 1 else ""
    known = versions() | dict(packages or {})
    if most is not None:
        return Row(name, figure, units, spread, f"<= {most:g}", figure <= most, known)
    if least is not None:
        return Row(name, figure, units, spread, f">= {least:g}", figure >= least, known)
    return Row(name, figure, units, spread, versions=known)


def ratios(over: Sequence[float], under: Sequence[float]) -> list[float]:
    """Return the ratio within each round."""
    return [a / b for a, b in zip(over, under, strict=True)]


def arguments(description: str) -> argparse.ArgumentParser:
    """Return a parser with the options of every benchmark."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="a rough result in under a minute; not for publication")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the rows to FILE")
    return parser


def add_patience(parser: argparse.ArgumentParser) -> None:
    """Add the option --patience; see `measure.cpu_load.undisturbed`."""
    parser.add_argument(
        "--patience",
        type=float,
        default=0.0,
        metavar="SECONDS",
        help="time in which each measurement may wait for an idle machine, or be repeated",
    )


def report(rows: Sequence[Row], title: str, json_file: Path | None) -> None:
    """Print the rows and, if `json_file` is given, write them to it."""
    print(heading(title, rows))
    table(rows)
    write(rows, json_file)


def heading(title: str, rows: Sequence[Row]) -> str:
    """Return the title, the hardware, and the versions of all rows."""
    known = {name: version for row in rows for name, version in row.versions.items()}
    return f"{title}\n{rows[0].hardware}; {', '.join(f'{name} {version}' for name, version in known.items())}"


def table(rows: Sequence[Row]) -> None:
    """Print rows as a table, without the columns that all of them leave empty."""
    shown = ("name", "figure", "units", "spread", "bar", "holds")
    used = [key for key in shown if any(getattr(row, key) not in ("", None) for row in rows)]
    results_table([{key: _text(getattr(row, key)) for key in used} for row in rows])


def write(rows: Sequence[Row], json_file: Path | None) -> None:
    """Write rows as JSON, if a file is given."""
    if json_file:
        json_file.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n")


def _text(value: object) -> object:
    if not isinstance(value, float):
        return value
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"
