"""The table of a study as rows: with numbers for files, and as text for readers."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from distrec.tracking.result_table import Row, columns, short
from distrec.tuning.study_config import label_of
from distrec.tuning.study_run import figures_of
from distrec.tuning.study_table import CellResult, Comparison, StudyTable, Summary, is_maximised


def cell_rows(table: StudyTable) -> list[Row]:
    """Return a row for each cell with numbers, for files: means, deviations, comparison, seeds, error."""
    rows: list[Row] = []
    for found in table.cells:
        row: dict[str, Any] = dict(found.cell.labels)
        for metric in table.study.columns:
            summary = table.summary(found, metric)
            row[metric] = summary and summary.mean
            row[f"{metric} sd"] = summary and summary.deviation
        comparison = table.comparisons.get(found.cell.label)
        row |= {"reference": comparison and comparison.reference, "difference": comparison and comparison.difference}
        row |= {"p": comparison and _known(comparison.p), "p corrected": comparison and _known(comparison.corrected)}
        row["seeds"] = len(found.results)
        row["found"] = _found_text(found) or None
        row["error"] = next(iter(found.errors.values()), None)
        rows.append(row)
    return rows


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value


def run_rows(table: StudyTable) -> list[Row]:
    """Return a row for each run: its cell, seed, all figures, run folder and error."""
    rows: list[Row] = []
    for found in table.cells:
        for seed in table.study.seeds:
            result = found.results.get(seed)
            figures: dict[str, Any] = {} if result is None else figures_of(result, table.study.ratios)
            end = {"folder": result and str(result.folder), "error": found.errors.get(seed)}
            rows.append({**found.cell.labels, "seed": seed, **figures, **end})
    return rows


def text_rows(table: StudyTable) -> list[Row]:
    """Return a row for each cell as it is shown: `0.3061 ± 0.0018`. The best mean of a column has a star."""
    metrics = [*table.study.metrics, *table.study.ratios]
    summaries = [[table.summary(found, metric) for metric in metrics] for found in table.cells]
    best = [max((s.mean for s in column if s), default=math.nan) for column in zip(*summaries, strict=True)]
    rows: list[Row] = []
    for found, values in zip(table.cells, summaries, strict=True):
        row: dict[str, Any] = dict(found.cell.labels)
        for metric, value, top in zip(metrics, values, best, strict=True):
            row[metric] = shown(value, starred=bool(value and value.mean == top and is_maximised(metric)))
        row |= _comparison_texts(table.comparisons.get(found.cell.label))
        if found.found:
            row["found"] = _found_text(found)
        if found.errors or len(found.results) < len(table.study.seeds):
            row["note"] = _note(found, len(table.study.seeds))
        rows.append(row)
    return rows


def shown(value: Summary | None, starred: bool = False) -> str:
    """Return a summary as text."""
    if value is None:
        return ""
    digits = 4 if abs(value.mean) < 1 else 2 if abs(value.mean) < 100 else 0
    spread = "" if value.deviation is None else f" ± {value.deviation:.{digits}f}"
    return f"{value.mean:.{digits}f}{spread}{' *' if starred else ''}"


def _comparison_texts(comparison: Comparison | None) -> dict[str, str]:
    if comparison is None:
        return {"difference": "", "p": ""}
    p = comparison.corrected
    text = "" if math.isnan(p) else "< 0.0001" if p < 1e-4 else f"{p:.4f}"
    return {"difference": f"{comparison.difference:+.4f}", "p": text}


def _note(found: CellResult, seeds: int) -> str:
    missing = f"{len(found.results)} of {seeds} seeds"
    error = next(iter(found.errors.values()), "").splitlines()
    return f"{missing}: {error[0]}" if error else missing


def _found_text(found: CellResult) -> str:
    return ", ".join(f"{key}={short(value)}" for key, value in found.found.items())


def explanation(table: StudyTable) -> list[str]:
    """Return sentences on how to read the table."""
    study, test = table.study, table.study.test
    several = f"mean ± standard deviation over {len(study.seeds)} seeds"
    seeds = several if len(study.seeds) > 1 else "of one seed, so there is no spread"
    lines = [f"Figures on the test part, {seeds}. * marks the best of a column."]
    if not table.comparisons:
        return lines
    kind = {"t": "paired t-test", "wilcoxon": "Wilcoxon's signed-rank test"}[test.name]
    if test.reference is None:
        against = f"the best cell, {next(iter(table.comparisons.values())).reference}"
    else:
        against = f"the cell with {', '.join(f'{a}={label_of(v)}' for a, v in test.reference.items())} and else equal"
    lines.append(f"difference: of {study.compared}, from {against}.")
    if all(math.isnan(comparison.p) for comparison in table.comparisons.values()):
        lines.append("No tests: the runs hold no figures of two or more users.")
    else:
        count = sum(not math.isnan(comparison.p) for comparison in table.comparisons.values())
        lines.append(
            f"p: {kind} over users, each with the mean over the seeds, corrected for {count} comparisons (Holm). It "
            "says how surely the difference would show with other users, and nothing about other seeds."
        )
    return lines


def write_rows(rows: Sequence[Row], path: Path) -> Path:
    """Write rows as Parquet, a column for each key."""
    pq.write_table(pa.table({name: [row.get(name) for row in rows] for name in columns(rows)}), path)
    return path
