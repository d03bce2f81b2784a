"""Intervals and p-values, against scipy's own tests and by coverage."""

import numpy as np
import pytest
from scipy import stats

from distrec.evaluation.paired_tests import holm
from distrec.report.statistics import mean, paired


def test_a_paired_difference_is_that_of_scipy():
    draws = np.random.default_rng(0)
    a, b = draws.random(40), draws.random(40)
    b[:5] = a[:5]
    found, expected = paired(a, b), stats.ttest_rel(a, b)
    interval = expected.confidence_interval(0.95)
    assert (found.mean, found.p) == pytest.approx((np.mean(a - b), expected.pvalue))
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    assert (found.users, found.better, found.worse) == (40, int((a > b).sum()), int((a < b).sum()))
    alone = stats.ttest_1samp(a, 0).confidence_interval(0.95)
    assert (mean(a).low, mean(a).high) == pytest.approx((alone.low, alone.high))


def test_equal_runs_and_single_users_differ_beyond_no_chance():
    same = paired(np.array([0.1, 0.5, 0.2]), np.array([0.1, 0.5, 0.2]))
    assert (same.mean, same.p, same.better, same.worse, same.is_clear) == (0, 1, 0, 0, False)
    shifted = paired(np.array([0.75, 0.5, 0.25]), np.array([0.5, 0.25, 0.0]))  # all users by the same amount
    assert shifted.is_clear and shifted.p == 0
    one = paired(np.array([1.0]), np.array([0.0]))
    assert one.p == 1 and not one.is_clear and np.isnan(one.low)


def test_holm_adjusts_by_the_number_of_comparisons():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0] and holm([]) == []


def test_intervals_hold_the_true_mean_nineteen_times_of_twenty():
    draws = np.random.default_rng(1)
    found = [mean(draws.exponential(size=200)) for _ in range(400)]
    assert 0.91 < np.mean([m.low < 1 < m.high for m in found]) < 0.98
