"""Diagnostics of representations against dense formulas, and the rule that recognises a collapse."""

import numpy as np
import pytest
import torch

from distrec.evaluation.collapse import collapse_warning
from distrec.evaluation.diagnostics import Side, diagnostics
from distrec.sharding.collectives import Exchange
from distrec.sharding.partition import Partition
from distrec.testing.ranks import run_ranks

ROWS, DIM = 60, 5


def make(scale=1.0):
    draws = np.random.default_rng(2)
    rows_VD = draws.standard_normal((ROWS, DIM)) * draws.random((ROWS, 1)) + scale * np.arange(DIM)
    degree_V = draws.integers(0, 4, ROWS)
    rows_VD[np.flatnonzero(degree_V)[[1, 4, 7]]] = np.array([[0.0], [np.nan], [np.inf]])
    return rows_VD.astype(np.float32), degree_V


def measure(scale=1.0):
    exchange, (rows_VD, degree_V) = Exchange(torch.device("cpu")), make(scale)
    partition = Partition(ROWS, 7, exchange.workers)
    own = partition.rows_of(exchange.rank)
    return diagnostics(Side("items", torch.from_numpy(rows_VD[own]), degree_V[own], partition), exchange)


@pytest.mark.parametrize("workers", [1, 3])
def test_against_dense_formulas(workers):
    rows_VD, degree_V = make()
    trained = degree_V > 0
    alive = trained & np.isfinite(rows_VD).all(1) & (np.abs(rows_VD).sum(1) > 0)
    rows_VD = rows_VD[alive].astype(float)
    share = np.linalg.svd(rows_VD, compute_uv=False)
    share = share / share.sum()
    norms = np.linalg.norm(rows_VD, axis=1)
    cosines = rows_VD @ rows_VD.T / norms / norms[:, None]
    expected = {
        "effective_rank_items": np.exp(-(share * np.log(share)).sum()),
        "mean_cosine_items": cosines[~np.eye(len(norms), dtype=bool)].mean(),
        "dead_rows_items": 3 / trained.sum(),
        **{f"norm_p{p}_items": np.percentile(norms, p) for p in (1, 50, 99)},
    }
    expected["effective_rank_share_items"] = expected["effective_rank_items"] / DIM
    for found in run_ranks(workers, measure):
        assert found == pytest.approx(expected, rel=1e-6)


def test_rows_that_are_all_dead_or_untrained():
    exchange, partition = Exchange(torch.device("cpu")), Partition(4, 2, 1)
    for degree, dead in ((1, 1.0), (0, 0.0)):
        side = Side("users", torch.zeros(4, 3), np.full(4, degree), partition)
        assert diagnostics(side, exchange) == {"dead_rows_users": dead}
    one = diagnostics(Side("users", torch.ones(4, 3), np.array([0, 2, 0, 0]), partition), exchange)
    assert one["effective_rank_users"] == pytest.approx(1) and "mean_cosine_users" not in one
    assert collapse_warning(one, []) is None, "one row is no collapse"


def healthy(**changes):
    figures = {"effective_rank_items": 40.0, "effective_rank_share_items": 0.6, "mean_cosine_items": 0.3}
    return {**figures, "norm_p50_items": 1.0, "dead_rows_items": 0.0, "gradient_norm": 0.1, **changes}


def test_the_rule_and_its_causes():
    assert collapse_warning(healthy(), [healthy()]) is None
    assert collapse_warning({}, []) is None
    # Each half of the rule alone is no collapse.
    low = {"effective_rank_items": 2.0, "effective_rank_share_items": 0.03}
    assert collapse_warning(healthy(mean_cosine_items=0.99), []) is None
    assert collapse_warning(healthy(**low), []) is None
    collapsed = healthy(**low, mean_cosine_items=0.99)
    for figures, before, cause in (
        (collapsed, [], "nothing pushes representations apart: raise sampling.negatives"),
        (collapsed | {"norm_p50_items": 30.0}, [healthy()], "steps too large, as the median length is 30: lower"),
        (
            collapsed | {"norm_p50_items": 0.01},
            [healthy()],
            "decay too strong, as the median length fell from 1 to 0.01",
        ),
        (collapsed | {"gradient_norm": 0.0}, [healthy()], "a saturated loss, as the gradient of the last step is 0"),
    ):
        warning = collapse_warning(figures, before)
        assert warning.startswith("the representations of the items collapse to one direction: mean cosine 0.99")
        assert cause in warning
    assert "2% of the items" in collapse_warning(healthy(dead_rows_items=0.02), [])
