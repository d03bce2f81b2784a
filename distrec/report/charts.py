"""Charts as SVG by matplotlib: text stays text, and colours are CSS variables, so that a page can be light or dark.

matplotlib knows no CSS, so each role has a colour of its own, which is replaced by its variable in the SVG.
"""

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from distrec.report.statistics import Mean

RUN_COLOURS = 6
_ROLES = {"#010101": "--ink", "#020202": "--muted", "#030303": "--grid", "#040404": "--paper"}
_RUNS = [f"#0505{n:02d}" for n in range(RUN_COLOURS)]
_PARTS = [f"#0606{n:02d}" for n in range(8)]
_COLOURS = (
    _ROLES
    | {colour: f"--part-{n}" for n, colour in enumerate(_PARTS)}
    | {colour: f"--run-{n}" for n, colour in enumerate(_RUNS)}
)
_INK, _MUTED, _GRID, _PAPER = _ROLES
_STYLE: Any = {
    "svg.fonttype": "none",
    "font.size": 10.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": _MUTED,
    "axes.labelcolor": _INK,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": _GRID,
    "grid.linewidth": 0.8,
    "text.color": _INK,
    "xtick.color": _MUTED,
    "ytick.color": _MUTED,
    "xtick.labelcolor": _INK,
    "ytick.labelcolor": _INK,
    "legend.frameon": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "lines.linewidth": 1.8,
}
_WIDTH, _HEIGHT = 4.9, 3.1  # inches of 72 units: 353 wide, so that a phone shows it in its own size
_POINTS = 700  # of a scatter plot
_MARKERS = "os^Dvp"

Point = tuple[float, float]


def intervals(rows: Sequence[str], means: Mapping[str, Sequence[Mean]], label: str) -> str:
    """Return a chart with a dot and an interval for each row and run."""
    figure, axes = _new(height=0.55 + 0.22 * len(rows) * max(1, len(means)) + 0.28)
    step = 0.7 / max(1, len(means))
    for n, run in enumerate(means):
        y = np.arange(len(rows)) + (n - (len(means) - 1) / 2) * step
        found = means[run]
        low, high = ([abs(getattr(m, side) - m.mean) for m in found] for side in ("low", "high"))
        options: Any = {"color": _colour(n), "marker": _MARKERS[n % len(_MARKERS)], "markersize": 4.5, "capsize": 2.5}
        axes.errorbar([m.mean for m in found], y, xerr=np.nan_to_num([low, high]), linestyle="", label=run, **options)
    axes.set_yticks(np.arange(len(rows)), rows)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlim(left=0)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel(label)
    return _finish(figure, list(means))


def curves(series: Mapping[str, Sequence[Point]], x_label: str, y_label: str) -> str:
    """Return lines, one for each run. Points are NaN where nothing was measured."""
    figure, axes = _new()
    for n, (_, points) in enumerate(series.items()):
        x, y = zip(*points, strict=True) if points else ((), ())
        marker = _MARKERS[n % len(_MARKERS)] if len(x) <= 25 else ""
        axes.plot(x, y, color=_colour(n), marker=marker, markersize=3.5)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return _finish(figure, list(series))


def bars(groups: Sequence[str], heights: Mapping[str, Sequence[Mean]], label: str) -> str:
    """Return groups of bars with intervals, one bar for each run."""
    figure, axes = _new()
    width = 0.8 / max(1, len(heights))
    for n, (_, found) in enumerate(heights.items()):
        x = np.arange(len(groups)) + (n - (len(heights) - 1) / 2) * width
        error = np.nan_to_num([[m.mean - m.low for m in found], [m.high - m.mean for m in found]])
        style: Any = {"color": _colour(n), "edgecolor": _PAPER, "linewidth": 1.0, "ecolor": _INK, "capsize": 2.5}
        axes.bar(x, [m.mean for m in found], width, yerr=error, **style)
    axes.set_xticks(np.arange(len(groups)), groups)
    axes.set_ylabel(label)
    axes.grid(axis="x", visible=False)
    return _finish(figure, list(heights))


def stacked(parts: Sequence[str], lengths: Mapping[str, Sequence[float]], label: str) -> str:
    """Return a horizontal bar for each run, of parts one after another."""
    figure, axes = _new(height=0.75 + 0.34 * len(lengths) + 0.24 * -(-len(parts) // 5))
    left = np.zeros(len(lengths))
    for n in range(len(parts)):
        width = np.array([values[n] for values in lengths.values()])
        axes.barh(list(lengths), width, 0.6, left, color=_part(n), edgecolor=_PAPER, linewidth=1.0)
        left += width
    axes.invert_yaxis()
    axes.set_xlabel(label)
    axes.grid(axis="y", visible=False)
    _legend(figure, {part: (_part(n), "s") for n, part in enumerate(parts)}, columns=5)
    return _svg(figure)


def scatter(points: Mapping[str, tuple[np.ndarray, np.ndarray]], x_label: str, y_label: str, run: int) -> str:
    """Return points of one run with a line through the medians of bins; each series has a marker of its own.

    Args:
        points: (x, y) by series; at most 700 points of each are drawn, evenly over the ranks of x.
        x_label: label of the horizontal axis.
        y_label: label of the vertical axis.
        run: index of the run, for its colour.
    """
    figure, axes = _new()
    for n, (x, y) in enumerate(points.values()):
        order = np.argsort(x, kind="stable")
        shown = order[np.linspace(0, len(order) - 1, min(_POINTS, len(order))).astype(int)]
        colour = _colour(run) if n == 0 else _MUTED
        axes.scatter(x[shown], y[shown], 7, color=colour, marker=_MARKERS[n], alpha=0.4, linewidths=0)
        bins = [part for part in np.array_split(order, min(12, max(1, len(order) // 8))) if len(part)]
        medians = [(np.median(x[part]), np.median(y[part])) for part in bins]
        style: Any = {"color": colour, "marker": _MARKERS[n], "markersize": 4, "markeredgecolor": _PAPER}
        axes.plot(*zip(*medians, strict=True), **style)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.set_ylim(bottom=0)
    _legend(figure, {name: (_colour(run) if n == 0 else _MUTED, _MARKERS[n]) for n, name in enumerate(points)})
    return _svg(figure)


def _new(height: float = _HEIGHT) -> tuple[Figure, Axes]:
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(_WIDTH, height), layout="constrained")
        return figure, figure.subplots()


def _colour(n: int) -> str:
    return _RUNS[n % RUN_COLOURS]


def _part(n: int) -> str:
    return _PARTS[n % len(_PARTS)]


def _finish(figure: Figure, runs: Sequence[str]) -> str:
    """Add a legend if there are several runs, and return the SVG."""
    if len(runs) > 1:
        _legend(figure, {run: (_colour(n), _MARKERS[n % len(_MARKERS)]) for n, run in enumerate(runs)})
    return _svg(figure)


def _legend(figure: Figure, entries: Mapping[str, tuple[str, str]], columns: int = 2) -> None:
    """Add a legend above the axes, of (colour, marker) by name."""
    lines = [Line2D([], [], color=c, marker=marker, linestyle="", markersize=5) for c, marker in entries.values()]
    with matplotlib.rc_context(_STYLE):
        style: Any = {"fontsize": 10, "handletextpad": 0.2, "columnspacing": 1.2, "borderpad": 0.1}
        figure.legend(lines, list(entries), loc="outside upper left", ncols=columns, **style)


_drawn = 0


def _svg(figure: Figure) -> str:
    """Return a figure as an element of a page: ids are its own, and colours are variables."""
    global _drawn
    _drawn += 1
    text = io.StringIO()
    with matplotlib.rc_context(_STYLE | {"svg.hashsalt": str(_drawn)}):
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None}, transparent=True)
    svg = text.getvalue()[text.getvalue().index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(id="|url\(#|href="#)', rf"\g<1>c{_drawn}-", svg)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r'\1 class="chart" role="img"', svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", svg)
    return re.sub("|".join(_COLOURS), lambda match: f"var({_COLOURS[match[0]]})", svg)
