"""Means over users with 95 % intervals, and paired differences between two runs.

Intervals and p-values are those of the t-test over users. They say how far the figures would vary with other users of
the same kind; they say nothing about other seeds of the training.
"""

from dataclasses import dataclass

import numpy as np
from scipy import stats

from distrec.evaluation.paired_tests import paired_p

LEVEL = 0.95
_EQUAL = 1e-12  # values of a user that differ by less are equal


@dataclass(frozen=True)
class Mean:
    """A mean over users and its 95 % interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Difference(Mean):
    """The mean of A - B over the users of both, and its 95 % interval."""

    p: float
    """Two-sided p-value of the paired t-test; 1 where all users are equal."""
    users: int
    better: int
    """Users for whom A is better."""
    worse: int

    @property
    def is_clear(self) -> bool:
        """Whether the interval excludes 0."""
        return self.low > 0 or self.high < 0


def mean(value_U: np.ndarray) -> Mean:
    """Return the mean of the users' values; the interval is NaN for fewer than two users."""
    average, margin = float(np.mean(value_U)), _margin(value_U)
    return Mean(average, average - margin, average + margin)


def paired(a_U: np.ndarray, b_U: np.ndarray) -> Difference:
    """Return the mean difference A - B of the same users."""
    difference_U = a_U - b_U
    average, margin, users = float(np.mean(difference_U)), _margin(difference_U), len(difference_U)
    p = paired_p(a_U, b_U) if users > 1 else 1.0
    better, worse = int((difference_U > _EQUAL).sum()), int((difference_U < -_EQUAL).sum())
    return Difference(average, average - margin, average + margin, p, users, better, worse)


def _margin(value_U: np.ndarray) -> float:
    """Return half the width of the interval."""
    users = len(value_U)
    if users < 2:
        return float("nan")
    return float(stats.t.ppf((1 + LEVEL) / 2, users - 1) * np.std(value_U, ddof=1) / np.sqrt(users))
