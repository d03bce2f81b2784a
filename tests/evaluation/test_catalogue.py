"""Coverage, Gini and popularity of recommended lists, strata by degree, bootstrap intervals: by their definitions."""

import numpy as np
import pytest
import torch

from distrec.evaluation.catalogue import catalogue_metrics
from distrec.evaluation.per_user import bootstrap
from distrec.evaluation.strata import strata_by_degree
from distrec.sharding.collectives import Exchange

NAMES = ("coverage", "gini", "popularity")


def measure(ranked, degree_V, ks, candidates=None):
    exchange = Exchange(torch.device("cpu"))
    return catalogue_metrics(np.array(ranked), ks, NAMES, np.array(degree_V), candidates, exchange)


def test_by_hand():
    found = measure([[0, 1], [0, 2], [0, -1]], [10, 4, 1, 7, 0], (1, 2))
    assert found["coverage@1"] == 1 / 5 and found["coverage@2"] == 3 / 5
    assert found["popularity@1"] == 10 and found["popularity@2"] == (3 * 10 + 4 + 1) / 5
    assert found["gini@1"] == pytest.approx(4 / 5)  # one of five items has all
    trained = measure([[0, 1], [0, 2], [0, -1]], [10, 4, 1, 7, 0], (2,), np.array([1, 1, 1, 1, 0], bool))
    assert trained["coverage@2"] == 3 / 4


def test_gini_is_half_the_relative_mean_difference():
    draws = np.random.default_rng(0)
    ranked = draws.zipf(1.5, (50, 10)).clip(max=30) - 1
    count_V = np.bincount(ranked.ravel(), minlength=30)
    expected = np.abs(count_V[:, None] - count_V).mean() / (2 * count_V.mean())
    assert measure(ranked, np.ones(30), (10,))["gini@10"] == pytest.approx(expected, rel=1e-12)
    assert measure([[k] for k in range(7)], np.ones(7), (1,))["gini@1"] == pytest.approx(0, abs=1e-12)


def test_nothing_recommended():
    for ranked in (np.full((3, 2), -1), np.empty((0, 2), int)):
        assert measure(ranked, [1, 2], (2,)) == {"coverage@2": 0, "gini@2": 0, "popularity@2": 0}


@pytest.mark.parametrize("rows", [1, 2, 5, 20, 21, 140])
def test_strata_by_sorting(rows):
    degree_V = np.random.default_rng(rows).integers(0, 6, rows)
    order = sorted(range(rows), key=lambda row: (-degree_V[row], row))
    bounds = -(-rows // 20), -(-rows // 5)
    expected = [0 if order.index(row) < bounds[0] else 1 if order.index(row) < bounds[1] else 2 for row in range(rows)]
    assert strata_by_degree(degree_V).tolist() == expected


def test_intervals_are_those_of_the_normal_distribution():
    """Of means of many users the percentile interval is mean +- 1.96 deviations, over the users that count."""
    draws = np.random.default_rng(1)
    value_U = draws.random(4000)
    some_U = np.where(np.arange(4000) < 1000, value_U, np.nan)
    found = bootstrap({"ndcg@20": value_U, "ndcg@20/active": some_U}, 2000)
    for name, values in (("ndcg@20", value_U), ("ndcg@20/active", value_U[:1000])):
        half = 1.96 * values.std() / len(values) ** 0.5
        assert found[f"{name}/low"] == pytest.approx(values.mean() - half, abs=0.08 * half)
        assert found[f"{name}/high"] == pytest.approx(values.mean() + half, abs=0.08 * half)
    assert found == bootstrap({"ndcg@20": value_U, "ndcg@20/active": some_U}, 2000)
    assert bootstrap({"recall@5": np.array([0.5])}, 10) == {"recall@5/low": 0.5, "recall@5/high": 0.5}
