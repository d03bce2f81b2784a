"""Paired tests against scipy's own functions of two samples, and Holm's correction against its definition."""

import math

import numpy as np
import pytest
from scipy import stats

from distrec.evaluation.paired_tests import holm, paired_p


def holm_by_definition(p_values: list[float]) -> list[float]:
    """Corrected p of k: the largest of (number of p-values that are not below p_j) p_j over those with p_j <= p_k."""
    return [min(1.0, max(sum(other >= p for other in p_values) * p for p in p_values if p <= own)) for own in p_values]


def test_holm():
    for seed in range(20):
        p_values = np.random.default_rng(seed).beta(0.3, 2, size=1 + seed % 6).tolist()
        assert holm(p_values) == pytest.approx(holm_by_definition(p_values), rel=1e-12)
    assert holm([]) == [] and holm([0.04]) == [0.04]
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])


def test_holm_leaves_out_what_was_not_tested():
    corrected = holm([0.01, math.nan, 0.03])
    assert corrected[::2] == pytest.approx([0.02, 0.03]) and math.isnan(corrected[1])


@pytest.mark.parametrize("test", ["t", "wilcoxon"])
def test_paired_p_is_that_of_two_samples(test):
    a, b = np.random.default_rng(0).normal([[0.3], [0.35]], 0.2, size=(2, 60)).round(3)
    b[:5] = a[:5]  # users without a difference
    expected = stats.ttest_rel(a, b) if test == "t" else stats.wilcoxon(a, b)
    assert paired_p(a, b, test) == pytest.approx(float(expected.pvalue), rel=1e-12)
    assert paired_p(a, b, test) == pytest.approx(paired_p(b, a, test))


@pytest.mark.parametrize("test", ["t", "wilcoxon"])
def test_extremes(test):
    two = np.array([0.5, 0.25])
    assert math.isnan(paired_p(two[:1], two[:1] + 1, test)) and math.isnan(paired_p(two[:0], two[:0], test))
    assert paired_p(two, two, test) == 1.0
    assert 0 <= paired_p(two + 0.25, two, test) <= 1
