"""Paired tests over users of two rankings, and Holm's correction for several of them.

They say how surely a difference would show with other users of the same kind, and nothing about other seeds.
"""

from collections.abc import Sequence

import numpy as np
from scipy import stats


def paired_p(a_U: np.ndarray, b_U: np.ndarray, test: str = "t") -> float:
    """Return the two-sided p-value of the differences of the same users; NaN where it is not defined.

    Args:
        a_U: values of the users.
        b_U: values of the same users in the same order.
        test: `t`, the paired t-test; `wilcoxon`, the signed-rank test without the users whose values are equal.
    """
    difference_U = a_U - b_U
    if len(difference_U) < 2:
        return float("nan")
    if not difference_U.any():
        return 1.0
    if test == "wilcoxon":
        return float(stats.wilcoxon(difference_U).pvalue)
    if np.ptp(difference_U) == 0:  # all users differ by the same amount: no variance
        return 0.0
    return float(stats.ttest_1samp(difference_U, 0.0).pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values corrected for their number (Holm, 1979). NaN stays, and does not count."""
    known = [k for k, p in enumerate(p_values) if not np.isnan(p)]
    corrected, largest = [float("nan")] * len(p_values), 0.0
    for step, k in enumerate(sorted(known, key=lambda k: p_values[k])):
        largest = max(largest, min(1.0, (len(known) - step) * p_values[k]))
        corrected[k] = largest
    return corrected
