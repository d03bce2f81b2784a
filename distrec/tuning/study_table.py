"""What a study has found: figures of its cells, mean and spread over seeds, and paired tests over users."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from distrec.core.errors import UserError
from distrec.evaluation.metrics import METRICS
from distrec.evaluation.paired_tests import holm, paired_p
from distrec.training.run_folder import Result
from distrec.tuning.study_cells import Cell
from distrec.tuning.study_config import StudyConfig, label_of
from distrec.tuning.study_run import figures_of, users_of


@dataclass(frozen=True)
class CellResult:
    """What is known of a cell.

    Attributes:
        results: result of each seed that has one.
        errors: error of each seed that failed.
        found: the best values of its search, by dotted key.
    """

    cell: Cell
    results: Mapping[int, Result]
    errors: Mapping[int, str] = field(default_factory=dict)
    found: Mapping[str, Any] = field(default_factory=dict)

    def values(self, metric: str, ratios: Mapping[str, tuple[str, str]]) -> list[float]:
        """Return a metric of each run that has it."""
        figures = [figures_of(result, ratios) for result in self.results.values()]
        return [run[metric] for run in figures if metric in run]

    def users(self, metric: str) -> dict[Any, float]:
        """Return a metric of each user, the mean over the seeds; empty if a run does not hold it."""
        runs = [users_of(result.folder, metric) for result in self.results.values()]
        if not runs or not all(runs) or any(run.keys() != runs[0].keys() for run in runs):
            return {}
        return {user: statistics.fmean(run[user] for run in runs) for user in runs[0]}


@dataclass(frozen=True)
class Summary:
    """A metric of a cell: its mean and sample standard deviation over seeds, None for one seed."""

    mean: float
    deviation: float | None


@dataclass(frozen=True)
class Comparison:
    """A cell beside its reference: the difference of the means, p and p corrected, NaN where there is no test."""

    reference: str
    difference: float
    p: float
    corrected: float = math.nan


@dataclass(frozen=True)
class StudyTable:
    """The cells of a study with what was found."""

    study: StudyConfig
    cells: Sequence[CellResult]
    comparisons: Mapping[str, Comparison]
    """By the label of the cell."""

    def summary(self, found: CellResult, metric: str) -> Summary | None:
        """Return a metric of a cell, None if no run has it."""
        return summarise(found.values(metric, self.study.ratios))

    def best(self) -> dict[str, float]:
        """Return the highest mean of each metric that is maximised and that a cell has."""
        means = {m: [s.mean for c in self.cells if (s := self.summary(c, m))] for m in self.study.metrics}
        return {metric: max(known) for metric, known in means.items() if known and is_maximised(metric)}


def is_maximised(metric: str) -> bool:
    """Return whether a higher value is better: not of durations, and unknown of ratios and figures of the catalogue."""
    return metric.removeprefix("valid/").partition("@")[0] in METRICS


def summarise(values: Sequence[float]) -> Summary | None:
    """Return mean and sample standard deviation; None for no values."""
    if not values:
        return None
    return Summary(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None)


def make_table(study: StudyConfig, cells: Sequence[CellResult]) -> StudyTable:
    """Compare the cells of a study.

    Raises:
        UserError: runs have different data or splits.
    """
    check_comparable(cells)
    metric = study.compared
    means = {c.cell.label: s.mean for c in cells if (s := summarise(c.values(metric, study.ratios))) is not None}
    users = {c.cell.label: c.users(metric) for c in cells}
    found = {}
    for cell, reference in _pairs(study, cells, means):
        p = _p_value(users[cell], users[reference], study.test.name)
        found[cell] = Comparison(reference, means[cell] - means[reference], p)
    corrected = holm([comparison.p for comparison in found.values()])
    comparisons = {
        label: Comparison(c.reference, c.difference, c.p, p)
        for (label, c), p in zip(found.items(), corrected, strict=True)
    }
    return StudyTable(study, cells, comparisons)


def check_comparable(cells: Sequence[CellResult]) -> None:
    """Raise UserError if the data, or their split, are not the same in all runs."""
    by_data: dict[str, str] = {}
    for found in cells:
        for seed, result in found.results.items():
            by_data.setdefault(result.fingerprint, f"{found.cell.label} (seed {seed})")
    if len(by_data) > 1:
        first, second = list(by_data.values())[:2]
        raise UserError(
            f"{first} and {second} have different data or splits, so their figures cannot be compared: give each data "
            "set and split a study of its own"
        )


def _pairs(study: StudyConfig, cells: Sequence[CellResult], means: Mapping[str, float]) -> list[tuple[str, str]]:
    """Return (label of a cell, label of its reference), both with a result."""
    if not means:
        return []
    reference = study.test.reference
    if reference is None:
        if not is_maximised(study.compared):
            return []  # no cell is the best
        best = max(means, key=means.__getitem__)
        return [(label, best) for label in means if label != best]
    wanted = {axis: label_of(value) for axis, value in reference.items()}
    by_labels = {tuple(found.cell.labels.items()): found.cell.label for found in cells}
    pairs = []
    for found in cells:
        other = by_labels[tuple((found.cell.labels | wanted).items())]
        if found.cell.label != other and found.cell.label in means and other in means:
            pairs.append((found.cell.label, other))
    return pairs


def _p_value(a: Mapping[Any, float], b: Mapping[Any, float], test: str) -> float:
    """Return the p-value of the users of both; NaN if there are none."""
    users = [user for user in a if user in b and not math.isnan(a[user]) and not math.isnan(b[user])]
    return paired_p(np.array([a[user] for user in users]), np.array([b[user] for user in users]), test)
