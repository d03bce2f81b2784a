"""The report of one or several runs: one HTML file, which needs no other file and no network."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from distrec import __version__
from distrec.core.atomic_file import write_text
from distrec.core.errors import UserError
from distrec.core.section import expand_user
from distrec.core.status import stage
from distrec.data.dataset import Part
from distrec.evaluation.strata import ITEM_STRATA
from distrec.report import charts
from distrec.report.comparison import Comparison, compare, fingerprint, item_rows, p_text, title, verdict
from distrec.report.run_data import RunData, read_run
from distrec.report.statistics import Mean, mean

_MOST_RUNS = charts.RUN_COLOURS


@dataclass(frozen=True)
class Table:
    """A table of a section. Cells are text or numbers; numbers are right-aligned."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    caption: str = ""


@dataclass(frozen=True)
class Chart:
    """A chart with its caption."""

    svg: Markup
    caption: str


@dataclass(frozen=True)
class Section:
    """A section of the page."""

    title: str
    text: Sequence[str] = ()
    charts: Sequence[Chart] = ()
    tables: Sequence[Table] = ()


def report(runs: Sequence[str | Path], out: str | Path, note: Callable[[str], object] = lambda text: None) -> Path:
    """Write the report of some runs.

    Args:
        runs: run folders, at most six.
        out: the HTML file.
        note: called with lines on what is unusual.

    Returns:
        The file.

    Raises:
        UserError: no run or too many; a run that cannot be read; a file that cannot be written.
    """
    if not 1 <= len(runs) <= _MOST_RUNS:
        raise UserError(f"a report shows 1 to {_MOST_RUNS} runs; got {len(runs)}")
    data = []
    for run, name in zip(runs, _names(runs), strict=True):
        stage(f"reading {name}")
        data.append(read_run(run, name, note))
    stage("drawing")
    return write_text(expand_user(out).absolute(), render(data))


def render(runs: Sequence[RunData]) -> str:
    """Return the page of some runs."""
    metric = runs[0].main_metric
    if any(metric not in run.test.values for run in runs):
        metric = f"ndcg@{runs[0].config.eval.k[0]}"
    if lacking := [run.name for run in runs if metric not in run.test.values]:
        raise UserError(f"{', '.join(lacking)} is not evaluated at {metric}: the runs need a common K in eval.k")
    found = compare(runs, metric)
    sections = [
        _metrics(runs, found),
        _items(runs, found, metric),
        _curves(runs),
        _norms(runs),
        _times(runs),
        _settings(runs),
        _data(runs),
    ]
    environment = Environment(
        loader=PackageLoader("distrec.report", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    return environment.get_template("page.html").render(
        title=" and ".join(run.name for run in runs) if len(runs) <= 2 else f"{len(runs)} runs",
        summary=_summary(runs, found, metric),
        runs=[(run.name, _subtitle(run)) for run in runs],
        sections=[section for section in sections if section is not None],
        version=__version__,
    )


def _names(runs: Sequence[str | Path]) -> list[str]:
    """Return the shortest ends of the paths that tell the runs apart."""
    paths = [Path(expand_user(Path(run))).absolute() for run in runs]
    for parts in range(1, 8):
        names = ["/".join(path.parts[-parts:]) for path in paths]
        if len(set(names)) == len(names):
            return names
    raise UserError("a run is given twice")


def _subtitle(run: RunData) -> str:
    loss = "" if "loss" in run.config.unused() else f", {run.config.loss.name}"
    return f"{run.config.model.name}{loss}; epoch {run.epoch} of {run.config.epochs}"


def _summary(runs: Sequence[RunData], found: Sequence[Comparison], metric: str) -> list[list[str]]:
    """Return the paragraphs at the top."""
    if found:
        return [verdict(comparison) for comparison in found]
    values = mean(runs[0].test.values[metric])
    if len(runs) > 1:
        return [["The runs have different data, so their users cannot be compared in pairs."]]
    return [
        [
            f"{runs[0].name}: {title(metric)} {values.mean:.4f} (95 % interval {values.low:.4f} to {values.high:.4f}) "
            f"over {len(runs[0].test.users):,} users."
        ]
    ]


def _metrics(runs: Sequence[RunData], found: Sequence[Comparison]) -> Section:
    names = [name for name in runs[0].test.values if "/" not in name and all(name in r.test.values for r in runs)]
    means = {run.name: [mean(run.test.values[name]) for name in names] for run in runs}
    titles = [title(name) for name in names]
    rows = [[titles[i], *(_with_interval(found[i]) for found in means.values())] for i in range(len(names))]
    tables = [Table(["metric", *means], rows, "Means over users, with 95 % intervals")]
    for c in found:
        tables.append(
            Table(
                ["metric", "difference", "95 % interval", "p", "users better / worse"],
                [[title(n), *_difference(c.differences[n])] for n in names],
                f"{c.a.name} minus {c.b.name}, of the same users",
            )
        )
    note = [
        "Intervals and p-values are of t-tests over users, paired where two runs are compared: they say how far the "
        "figures would vary with other users, and nothing about other seeds of the training."
    ]
    if len(found) > 1:
        note.append("The p-values at the top are adjusted for the number of comparisons (Holm); those below are not.")
    part = "test" if runs[0].part == Part.TEST else "validation"
    chart = charts.intervals(titles, means, "mean over users")
    return Section("Metrics", note, [Chart(Markup(chart), f"Metrics on the {part} part")], tables)


def _items(runs: Sequence[RunData], found: Sequence[Comparison], metric: str) -> Section | None:
    if f"{metric}/{ITEM_STRATA[0]}" not in runs[0].test.values:
        metric = f"ndcg@{runs[0].config.eval.k[0]}"
    if any(f"{metric}/{ITEM_STRATA[0]}" not in run.test.values for run in runs):
        return None
    parts = {run.name: [mean(run.test.values[f"{metric}/{name}"]) for name in ITEM_STRATA] for run in runs}
    rows = [[name, *(_with_interval(found[i]) for found in parts.values())] for i, name in enumerate(ITEM_STRATA)]
    tables = [Table(["items", *parts], rows, f"Part of {title(metric)} by the popularity of the items that are hit")]
    for c in found:
        differences = [[name, *_difference(c.differences[f"{metric}/{name}"])] for name in ITEM_STRATA]
        columns = ["items", "difference", "95 % interval", "p", "users better / worse"]
        tables.append(Table(columns, differences, f"{c.a.name} minus {c.b.name}"))
        if listed := item_rows(c):
            columns = ["item", "training interactions", "held-out users", f"hits of {c.a.name}", f"hits of {c.b.name}"]
            tables.append(Table(columns, listed, "Items whose number of hits differs most"))
    text = [
        "Popular items are the first 5 % by training interactions, neutral ones the next 15 %, unpopular ones the "
        "rest. The parts sum to the whole metric."
    ]
    return Section(
        "For which items",
        text,
        [Chart(Markup(charts.bars(ITEM_STRATA, parts, title(metric))), f"{title(metric)} by popularity of the item")],
        tables,
    )


def _curves(runs: Sequence[RunData]) -> Section:
    loss = {run.name: [(r["epoch"], r["loss"]) for r in run.history] for run in runs}
    drawn = [Chart(Markup(charts.curves(loss, "epoch", "training loss")), "Training loss by epoch")]
    names = dict.fromkeys(name for run in runs for record in run.history for name in record.get("metrics", {}))
    for name in [name for name in names if name.count("/") == 0 or name.endswith(("/dot", "/cosine"))]:
        series = {run.name: _points(run, name) for run in runs}
        drawn.append(Chart(Markup(charts.curves(series, "epoch", title(name))), f"Validation {title(name)} by epoch"))
    text = (
        []
        if len({run.config.loss.name for run in runs if "loss" not in run.config.unused()}) < 2
        else ["The runs minimise different losses, whose values cannot be compared."]
    )
    return Section("Training", text, drawn)


def _points(run: RunData, name: str) -> list[charts.Point]:
    return [(r["epoch"], r["metrics"][name]) for r in run.history if name in r.get("metrics", {})]


def _norms(runs: Sequence[RunData]) -> Section | None:
    drawn = []
    for n, run in enumerate(runs):
        points, notes = {}, []
        for entity, norm_V in run.norms.items():
            degree_V = run.degrees[entity]
            x, y = np.log(degree_V[degree_V > 0] + 2), norm_V[degree_V > 0]
            points[entity] = x, y
            if len(x) > 1 and np.std(x) > 0 and np.std(y) > 0:
                notes.append(f"{entity} {np.corrcoef(x, y)[0, 1]:+.2f}")
        if points:
            svg = charts.scatter(points, "log(training interactions + 2)", "norm of the vector", n)
            drawn.append(Chart(Markup(svg), f"{run.name}: correlation of {', '.join(notes)}" if notes else run.name))
    if not drawn:
        return None
    text = ["Each point is a user or an item with training interactions; the lines join the medians of bins."]
    return Section("Norm against popularity", text, drawn)


def _times(runs: Sequence[RunData]) -> Section | None:
    parts = list(dict.fromkeys(part for run in runs for record in run.history for part in record.get("split", {})))
    if not parts:
        return None
    lengths = {
        run.name: [_mean([r.get("split", {}).get(part, 0.0) for r in run.history]) for part in parts] for run in runs
    }
    rows = []
    for run in runs:
        epochs = [record["seconds"] for record in run.history]
        evaluation = [record["eval_s"] for record in run.history if "eval_s" in record]
        total = f"{run.result.timing.total_s:,.1f}" if run.result else "not finished"
        medians = [f"{np.median(times):.2f}" if times else "" for times in (epochs, evaluation)]
        rows.append([run.name, f"{epochs[0]:.2f}" if epochs else "", *medians, total])
    columns = ["run", "first epoch, s", "median epoch, s", "median evaluation, s", "whole run, s"]
    chart = Chart(Markup(charts.stacked(parts, lengths, "seconds an epoch")), "Time of an epoch by part of its steps")
    return Section("Time", (), [chart], [Table(columns, rows)])


def _settings(runs: Sequence[RunData]) -> Section | None:
    if len(runs) == 1:
        return None
    settings = [run.settings for run in runs]
    keys = dict.fromkeys(key for flat in settings for key in flat if not key.startswith(("run.dir", "run.resume")))
    rows = [
        [key, *(_setting(flat, key) for flat in settings)]
        for key in keys
        if len({_setting(flat, key) for flat in settings}) > 1
    ]
    if not rows:
        return Section("Configuration", ["The configurations are equal."])
    return Section("Configuration", (), (), [Table(["key that differs", *(run.name for run in runs)], rows)])


def _setting(flat: Mapping[str, Any], key: str) -> str:
    return str(flat[key]) if key in flat else "–"


def _data(runs: Sequence[RunData]) -> Section:
    groups: dict[str, list[RunData]] = {}
    for run in runs:
        groups.setdefault(fingerprint(run), []).append(run)
    tables = [
        Table(["", ""], group[0].dataset.summary(), "" if len(groups) == 1 else ", ".join(run.name for run in group))
        for group in groups.values()
    ]
    return Section("Data", (), (), tables)


def _with_interval(value: Mean) -> str:
    return f"{value.mean:.4f} ± {(value.high - value.low) / 2:.4f}"


def _difference(d: Any) -> list[str]:
    return [f"{d.mean:+.4f}", f"{d.low:+.4f} to {d.high:+.4f}", p_text(d.p), f"{d.better:,} / {d.worse:,}"]


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if len(values) else float("nan")
