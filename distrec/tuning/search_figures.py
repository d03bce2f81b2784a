"""Pictures of a search, finished or not: best so far, parallel coordinates, slices, importance."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from distrec.tuning.drawing import new_figure
from distrec.tuning.folder import FIGURES, SearchFolder
from distrec.tuning.journal import FINISHED, Record, Records
from distrec.tuning.space import Range, make_space

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CAPTIONS = {
    "best_so_far": "Each trial at its end, and the best value so far.",
    "parallel_coordinates": "The values of each trial, a line for each.",
    "slices": "The metric against each key.",
    "importance": "Share of each key in what makes a trial one of the best (PED-ANOVA).",
}
_FEWEST = 4  # trials with a value, for the importance of keys


def search_figures(folder: str | Path) -> "dict[str, Figure]":
    """Return figures of matplotlib by name: best_so_far, parallel_coordinates, slices, importance.

    Empty for a search of which no trial has a value yet; without importance for less than four trials.

    Raises:
        UserError: this is not the folder of a search.
    """
    found = SearchFolder(Path(folder))
    config = found.search_config()
    trials = [record for record in Records(found.journal).trials if record.best(config.metric)]
    ranges = [r for r in make_space(config, config.space).ranges if any(r.key in t.values for t in trials)]
    if not trials:
        return {}
    figures = {
        "best_so_far": _best_so_far(trials, config.metric),
        "parallel_coordinates": _parallel_coordinates(trials, ranges, config.metric),
        "slices": _slices(trials, ranges, config.metric),
    }
    importance = _importance(trials, ranges, config.metric)
    return figures | ({"importance": importance} if importance else {})


def save_figures(figures: "Mapping[str, Figure]", folder: Path) -> list[Path]:
    """Write figures into the folder `figures` of a search. Return the files."""
    target = folder / FIGURES
    target.mkdir(exist_ok=True)
    files = []
    for name, figure in figures.items():
        files.append(target / f"{name}.png")
        figure.savefig(files[-1], dpi=110)
    return files


def _value(record: Record, metric: str) -> float:
    point = record.best(metric)
    assert point is not None
    return point[1]


def _best_so_far(trials: list[Record], metric: str) -> "Figure":
    """Draw each trial at its end, and the best value so far against the time of the search."""
    figure = new_figure(7, 4)
    axes = figure.subplots()
    ordered = sorted(trials, key=lambda record: record.end_s)
    minutes = [record.end_s / 60 for record in ordered]
    values = [_value(record, metric) for record in ordered]
    for whole, label, color in ((True, "finished", "C0"), (False, "stopped early", "C7")):
        chosen = [k for k, record in enumerate(ordered) if (record.reason == FINISHED) is whole]
        axes.scatter([minutes[k] for k in chosen], [values[k] for k in chosen], s=18, color=color, label=label)
    axes.step(minutes, np.maximum.accumulate(values), where="post", color="C1", label="best so far")
    axes.set(xlabel="minutes of the search", ylabel=f"validation {metric}")
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


def _parallel_coordinates(trials: list[Record], ranges: list[Range], metric: str) -> "Figure":
    """Draw a line for each trial through its values, coloured by its metric. A line skips keys that it has not."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    figure = new_figure(max(6.0, 1.8 * (len(ranges) + 1)), 4.5)
    axes = figure.subplots()
    values = [_value(record, metric) for record in trials]
    mappable = ScalarMappable(Normalize(min(values), max(values)), "viridis_r")
    for record, value in sorted(zip(trials, values, strict=True), key=lambda pair: pair[1]):
        heights = [_height(r, record.values[r.key]) if r.key in record.values else np.nan for r in ranges]
        (color,) = mappable.to_rgba(np.array([value]))
        axes.plot(heights, color=color, alpha=0.8, marker=".", linewidth=1)
    for k, key_range in enumerate(ranges):
        axes.axvline(k, color="0.7", linewidth=0.8)
        for label, value in _ticks(key_range):
            axes.annotate(label, (k, _height(key_range, value)), (3, 0), textcoords="offset points", fontsize=7)
    axes.set_xticks(range(len(ranges)), [r.key for r in ranges], rotation=20, ha="right")
    axes.set_yticks([])
    axes.set_ylim(-0.05, 1.05)
    axes.set_xlim(-0.1, len(ranges) - 0.6)
    figure.colorbar(mappable, ax=axes, label=f"validation {metric}")
    return figure


def _height(key_range: Range, value: Any) -> float:
    """Return where a value lies in its range, in [0, 1]."""
    if key_range.choices:
        return (key_range.choices.index(value) + 0.5) / len(key_range.choices)
    low, high = key_range.low, key_range.high
    if key_range.kind.startswith("log"):
        low, high, value = np.log(low), np.log(high), np.log(value)
    return float((value - low) / (high - low))


def _ticks(key_range: Range) -> list[tuple[str, Any]]:
    return [(f"{v:.3g}" if isinstance(v, float) else str(v), v) for v in key_range.extremes()]


def _slices(trials: list[Record], ranges: list[Range], metric: str) -> "Figure":
    """Draw the metric against each key, darker for later trials."""
    columns = min(3, len(ranges))
    rows = -(-len(ranges) // columns)
    figure = new_figure(3.2 * columns + 1, 2.8 * rows)
    panels: list[Axes] = list(figure.subplots(rows, columns, squeeze=False, sharey=True).flat)
    points = None
    for axes, key_range in zip(panels, ranges, strict=False):
        chosen = [(k, r) for k, r in enumerate(trials) if key_range.key in r.values]
        given = [r.values[key_range.key] for _, r in chosen]
        x = [key_range.choices.index(value) for value in given] if key_range.choices else given
        order = [k for k, _ in chosen]
        points = axes.scatter(x, [_value(r, metric) for _, r in chosen], c=order, cmap="Blues", edgecolors="0.5")
        points.set_clim(-len(trials) / 4, len(trials))
        axes.set_xlabel(key_range.key)
        axes.grid(alpha=0.3)
        if key_range.choices:
            axes.set_xticks(range(len(key_range.choices)), [str(value) for value in key_range.choices])
        if key_range.kind.startswith("log"):
            low, high = key_range.low, key_range.high
            axes.set_xscale("log")
            axes.set_xticks([], minor=True)
            axes.set_xticks(ticks := [low, (low * high) ** 0.5, high], [f"{tick:.2g}" for tick in ticks])
    for axes in panels[len(ranges) :]:
        axes.set_axis_off()
    panels[0].set_ylabel(f"validation {metric}")
    if points is not None:
        bar = figure.colorbar(points, ax=panels, label="number of the trial")
        bar.ax.set_ylim(0, max(1, len(trials) - 1))  # without the colours that are too light for points
    return figure


def _importance(trials: list[Record], ranges: list[Range], metric: str) -> "Figure | None":
    """Draw the importance of each key that all trials have, by PED-ANOVA (Watanabe et al., IJCAI 2023)."""
    common = [r for r in ranges if all(r.key in record.values for record in trials)]
    if len(trials) < _FEWEST or not common:
        return None
    import optuna

    from distrec.tuning.sampler import finished_trial

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(direction="maximize")
    study.add_trials([finished_trial(common, record.values, _value(record, metric)) for record in trials])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # optuna calls the method experimental
        evaluator = optuna.importance.PedAnovaImportanceEvaluator()
        shares = optuna.importance.get_param_importances(study, evaluator=evaluator)
    figure = new_figure(6, 1.2 + 0.4 * len(common))
    axes = figure.subplots()
    names = list(shares)[::-1]
    axes.barh(names, [shares[name] for name in names])
    axes.set(xlabel=f"importance for validation {metric} (PED-ANOVA)")
    return figure
