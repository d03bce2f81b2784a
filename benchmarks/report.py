"""Rows of a benchmark: printed as a table, and written as JSON for whoever compares runs."""

import argparse
import json
import os
import platform
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from distrec.cli.progress import results_table
from distrec.tracking.environment import versions


def hardware() -> str:
    """Processor, cores and memory of this machine."""
    model = platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        model = names[0].split(":", 1)[1].strip() if names else model
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{model}, {os.cpu_count()} cores, {memory:.0f} GiB"


@dataclass(frozen=True)
class Row:
    """One figure."""

    name: str
    figure: float | None
    """None: not to be had yet."""
    unit: str
    spread: str = ""
    """How far the repetitions lie apart."""
    bar: str = ""
    """What the figure is held to, if anything."""
    holds: bool | None = None
    versions: dict[str, str] = field(default_factory=versions)
    hardware: str = field(default_factory=hardware)


def median_row(name: str, values: Sequence[float], unit: str) -> Row:
    """The median of repetitions, with their range."""
    return Row(name, statistics.median(values), unit, f"{min(values):.4g} to {max(values):.4g}, {len(values)} times")


def bar_row(
    name: str,
    values: Sequence[float],
    unit: str,
    most: float | None = None,
    least: float | None = None,
    packages: Mapping[str, str] | None = None,
) -> Row:
    """A median with its quartiles, held to at most `most` or at least `least`. `packages`: versions beside our own."""
    figure = statistics.median(values)
    low, high = (min(values), max(values)) if len(values) < 4 else statistics.quantiles(values, n=4)[::2]
    spread = f"{low:.3g} to {high:.3g}, {len(values)} times" if len(values) > 1 else ""
    known = versions() | dict(packages or {})
    if most is not None:
        return Row(name, figure, unit, spread, f"<= {most:g}", figure <= most, known)
    if least is not None:
        return Row(name, figure, unit, spread, f">= {least:g}", figure >= least, known)
    return Row(name, figure, unit, spread, versions=known)


def ratios(over: Sequence[float], under: Sequence[float]) -> list[float]:
    """One for each round."""
    return [a / b for a, b in zip(over, under, strict=True)]


def arguments(description: str) -> argparse.ArgumentParser:
    """What every benchmark takes."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="under a minute, for a look; not for quoting")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the rows to FILE")
    return parser


def report(rows: Sequence[Row], title: str, json_file: Path | None) -> None:
    """Prints the rows and writes them to `json_file`, if there is one."""
    print(heading(title, rows))
    table(rows)
    write(rows, json_file)


def heading(title: str, rows: Sequence[Row]) -> str:
    """What all rows were measured on."""
    known = {name: version for row in rows for name, version in row.versions.items()}
    return f"{title}\n{rows[0].hardware}; {', '.join(f'{name} {version}' for name, version in known.items())}"


def table(rows: Sequence[Row]) -> None:
    """Prints rows."""
    shown = ("name", "figure", "unit", "spread", "bar", "holds")
    used = [key for key in shown if any(getattr(row, key) not in ("", None) for row in rows)]
    results_table([{key: _text(getattr(row, key)) for key in used} for row in rows])


def write(rows: Sequence[Row], json_file: Path | None) -> None:
    """Writes rows as JSON, if there is a file to write to."""
    if json_file:
        json_file.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n")


def _text(value: object) -> object:
    if not isinstance(value, float):
        return value
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"
