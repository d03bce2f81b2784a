"""Figures of a study: a metric against an axis, with lines for the other axes, or cells as points of two metrics."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from distrec.tuning.drawing import new_figure
from distrec.tuning.study_config import FigureConfig
from distrec.tuning.study_table import CellResult, StudyTable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LOG_RANGE = 10  # largest over smallest value of an axis from which it is logarithmic
_COLUMNS = 3
_MARKERS = "os^Dvp*X"


def study_figures(table: StudyTable) -> "list[Figure]":
    """Return the figures of a study as figures of matplotlib."""
    return [_draw(table, figure) for figure in table.study.figures]


def save_figures(figures: "Sequence[Figure]", folder: Path) -> list[Path]:
    """Write the figures of a study into a folder. Return the files."""
    files = []
    for number, figure in enumerate(figures, 1):
        files.append(folder / f"figure_{number}.png")
        figure.savefig(files[-1], dpi=120)
    return files


def _draw(table: StudyTable, config: FigureConfig) -> "Figure":
    metrics = config.y or table.study.metrics[:1]
    columns = 2 if len(metrics) == 4 else min(_COLUMNS, len(metrics))
    rows = -(-len(metrics) // columns)
    figure = new_figure(1 + 3.6 * columns, 0.4 + 3.2 * rows)
    panels: list[Axes] = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes, metric in zip(panels, metrics, strict=False):
        if config.x in table.study.cells:
            _draw_lines(table, config, metric, axes)
        else:
            _draw_points(table, config.x, metric, axes)
        axes.set(xlabel=config.x, ylabel=metric)
        axes.grid(alpha=0.3)
    for axes in panels[len(metrics) :]:
        axes.set_axis_off()
    handles, labels = panels[0].get_legend_handles_labels()
    if len(labels) > 1:
        ncols = max(1, int(figure.get_figwidth() / (0.45 + 0.08 * max(map(len, labels)))))  # inches, at this font size
        figure.legend(handles, labels, loc="outside upper left", ncols=ncols, fontsize=8, frameon=False)
    return figure


def _draw_lines(table: StudyTable, config: FigureConfig, metric: str, axes: "Axes") -> None:
    """Draw a line with deviations for each combination of the series' axes."""
    ticks = list(dict.fromkeys(found.cell.labels[config.x] for found in table.cells))
    x_of = _positions(ticks, axes)
    for number, (name, cells) in enumerate(_series(table, config).items()):
        known = [(found, s) for found in cells if (s := table.summary(found, metric)) is not None]
        axes.errorbar(
            [x_of[found.cell.labels[config.x]] for found, _ in known],
            [s.mean for _, s in known],
            [s.deviation or 0.0 for _, s in known],
            label=name,
            color=f"C{number % 10}",
            marker=_MARKERS[number % len(_MARKERS)],
            markersize=4,
            capsize=2,
            linewidth=1.4,
        )


def _series(table: StudyTable, config: FigureConfig) -> dict[str, list[CellResult]]:
    """Return the cells of each line by its label."""
    names = config.series if config.series is not None else [axis for axis in table.study.cells if axis != config.x]
    lines: dict[str, list[CellResult]] = {}
    for found in table.cells:
        label = ", ".join(_with_name(name, found.cell.labels[name]) for name in names)
        lines.setdefault(label, []).append(found)
    return lines


def _with_name(axis: str, label: str) -> str:
    """Return a label, with the name of its axis if it is a number."""
    return f"{axis.rpartition('.')[2]} {label}" if _number(label) is not None else label


def _positions(ticks: list[str], axes: "Axes") -> dict[str, float]:
    """Return where each value of an axis is drawn, and set the ticks: in proportion, by logarithm, or one by one."""
    values = [_number(tick) for tick in ticks]
    known = [value for value in values if value is not None]
    far_apart = len(known) > 1 and max(known) > _LOG_RANGE * min(known)
    if len(known) < len(ticks) or (far_apart and min(known) <= 0):
        axes.set_xticks(range(len(ticks)), ticks, rotation=20 if max(map(len, ticks)) > 6 else 0)
        return {tick: float(k) for k, tick in enumerate(ticks)}
    if far_apart:
        axes.set_xscale("log")
        axes.set_xticks([], minor=True)
    axes.set_xticks(known, ticks)
    return dict(zip(ticks, known, strict=True))


def _number(label: str) -> float | None:
    try:
        return float(label)
    except ValueError:
        return None


def _draw_points(table: StudyTable, x: str, y: str, axes: "Axes") -> None:
    """Draw each cell as a point of two metrics, with deviations."""
    for number, found in enumerate(table.cells):
        a, b = table.summary(found, x), table.summary(found, y)
        if a is not None and b is not None:
            label = ", ".join(_with_name(axis, label) for axis, label in found.cell.labels.items())
            axes.errorbar(
                a.mean,
                b.mean,
                b.deviation,
                a.deviation,
                label=label,
                color=f"C{number % 10}",
                marker=_MARKERS[number // 10 % len(_MARKERS)],
                capsize=2,
                linestyle="",
            )
