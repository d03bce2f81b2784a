"""Ranking metrics against a loop over users, by hand, and over partitions of the users."""

import math
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distrec.core.errors import UserError
from distrec.evaluation.metrics import METRICS, ranking_sums, user_metrics
from distrec.testing.trec_eval import beside_trec_eval


def csr(relevant):
    """Return (indptr, indices) of a list of items per user."""
    indptr = np.cumsum([0] + [len(r) for r in relevant])
    return indptr, np.array([i for r in relevant for i in r], np.int64)


def loop(ranked, relevant, ks):
    """Oracle: one user, one rank at a time."""
    totals = {f"{name}@{k}": 0.0 for name in METRICS for k in ks}
    users = 0
    for row, wanted in zip(ranked, relevant, strict=True):
        wanted = set(wanted)
        if not wanted:
            continue
        users += 1
        for k in ks:
            hits = [rank for rank, item in enumerate(row[:k], start=1) if item in wanted]
            ideal = sum(1 / math.log2(rank + 1) for rank in range(1, min(k, len(wanted)) + 1))
            totals[f"recall@{k}"] += len(hits) / len(wanted)
            totals[f"ndcg@{k}"] += sum(1 / math.log2(rank + 1) for rank in hits) / ideal
            totals[f"precision@{k}"] += len(hits) / k
            totals[f"hit_rate@{k}"] += bool(hits)
            totals[f"mrr@{k}"] += 1 / hits[0] if hits else 0
            totals[f"map@{k}"] += sum((n + 1) / rank for n, rank in enumerate(hits)) / len(wanted)
    return totals, users


@st.composite
def rankings(draw):
    """Return lists of distinct items, padded with -1, and relevant items in any order, with repetitions."""
    items, width = draw(st.integers(1, 12)), draw(st.integers(1, 12))
    users = draw(st.integers(0, 6))
    ids = st.integers(0, items - 1)
    ranked = [draw(st.lists(ids, unique=True, max_size=min(width, items))) for _ in range(users)]
    padded = np.array([row + [-1] * (width - len(row)) for row in ranked], np.int64).reshape(users, width)
    return padded, [draw(st.lists(ids, max_size=8)) for _ in range(users)]


@given(rankings(), st.lists(st.integers(1, 15), min_size=1, max_size=3, unique=True))
@settings(max_examples=300, deadline=None)
def test_equals_the_loop_over_users(ranking, ks):
    ranked, relevant = ranking
    got = ranking_sums(ranked, *csr(relevant), ks, tuple(METRICS))
    totals, users = loop(ranked.tolist(), relevant, ks)
    assert (got.users, got.left_out) == (users, len(relevant) - users)
    assert got.sums == pytest.approx(totals, abs=1e-8)


def test_by_hand():
    ranked = np.array([[5, 2, 9, 1], [7, 3, 0, -1], [4, 6, 8, 2]])
    relevant = [[2, 1, 30], [], [4]]
    got = ranking_sums(ranked, *csr(relevant), (2, 4))
    # User 0 has hits at ranks 2 and 4 of three relevant items, user 2 one at rank 1 of one; user 1 is left out.
    d = [None, 1.0, 1 / math.log2(3), 0.5, 1 / math.log2(5)]
    assert (got.users, got.left_out) == (2, 1)
    assert got.means() == pytest.approx(
        {
            "recall@2": (1 / 3 + 1) / 2,
            "recall@4": (2 / 3 + 1) / 2,
            "ndcg@2": (d[2] / (d[1] + d[2]) + 1) / 2,
            "ndcg@4": ((d[2] + d[4]) / (d[1] + d[2] + d[3]) + 1) / 2,
        },
        abs=1e-9,
    )


def test_cut_off_beyond_the_catalogue():
    got = ranking_sums(np.array([[0, 1, 2]]), *csr([[0, 1, 2]]), (20,)).means()
    assert got == {"recall@20": 1.0, "ndcg@20": 1.0}


def test_everything_masked_and_id_zero_relevant():
    """The -1 of one user must not match the last item of the previous user."""
    relevant = [[0, 3], [0], [3]]
    got = ranking_sums(np.full((3, 4), -1), *csr(relevant), (4,))
    assert got.users == 3 and set(got.sums.values()) == {0.0}


def test_no_relevant_items_at_all():
    got = ranking_sums(np.array([[1, 2], [3, 4]]), *csr([[], []]), (2,))
    assert (got.users, got.left_out) == (0, 2) and set(got.sums.values()) == {0.0}
    with pytest.raises(UserError, match="none of the 2 users has a relevant item"):
        got.means()


def test_sums_do_not_depend_on_the_partition_of_users():
    rng = np.random.default_rng(3)
    ranked = rng.permuted(np.tile(np.arange(60), (997, 1)), axis=1)[:, :20]
    relevant = [rng.choice(60, rng.integers(0, 9), replace=False).tolist() for _ in range(997)]
    whole = ranking_sums(ranked, *csr(relevant), (5, 20))
    for workers in (2, 3, 16):
        parts = [ranking_sums(ranked[w::workers], *csr(relevant[w::workers]), (5, 20)) for w in range(workers)]
        for name, total in whole.sums.items():
            assert sum(part.sums[name] for part in parts[::-1]) == total  # bit-equal, see _RESOLUTION
        assert sum(part.users for part in parts) == whole.users
        assert sum(part.left_out for part in parts) == whole.left_out


def test_rounding_error():
    got = ranking_sums(np.array([[0]]), *csr([[0, 1, 2]]), (1,)).sums["recall@1"]
    assert abs(Fraction(got) - Fraction(1, 3)) <= Fraction(1, 2**33)


def test_errors():
    ranked, relevant = np.array([[1]]), csr([[1]])
    with pytest.raises(UserError, match="unknown metric 'hits'; known: hit_rate, map, mrr, ndcg, precision, recall"):
        ranking_sums(ranked, *relevant, (1,), names=("hits",))
    with pytest.raises(UserError, match="at least 1"):
        ranking_sums(ranked, *relevant, (0,))


def test_strata_by_hand():
    """Of three relevant items one at rank 1 is popular and one at rank 4 is not."""
    ranked, stratum_V = np.array([[7, 0, 1, 5, *range(20, 36)]]), np.full(40, 2)
    stratum_V[7], stratum_V[12] = 0, 1
    found = user_metrics(ranked, *csr([[5, 7, 12]]), (20,), strata=(stratum_V, ("popular", "neutral", "unpopular")))
    parts = {name: value_U[0] for name, value_U in found.values.items()}
    assert parts == pytest.approx(
        {
            "recall@20": 2 / 3,
            "recall@20/popular": 1 / 3,
            "recall@20/neutral": 0.0,
            "recall@20/unpopular": 1 / 3,
            "ndcg@20": 0.671386,
            "ndcg@20/popular": 0.469279,
            "ndcg@20/neutral": 0.0,
            "ndcg@20/unpopular": 0.202107,
        },
        abs=1e-6,
    )


def random_rankings(users=300, items=200, width=30):
    rng = np.random.default_rng(5)
    ranked = rng.permuted(np.tile(np.arange(items), (users, 1)), axis=1)[:, :width]
    return ranked, [rng.choice(items, rng.integers(0, 40), replace=False).tolist() for _ in range(users)]


def test_equals_trec_eval():
    """ir-measures computes each metric of each user from the same lists by trec_eval."""
    pytest.importorskip("ir_measures")
    ranked, relevant = random_rankings()
    seen = Counter()
    for name, value, of_trec_eval in beside_trec_eval(ranked, *csr(relevant), (5, 20)):
        assert abs(value - of_trec_eval) < 1e-9, name
        seen[name] += 1
    users = sum(map(bool, relevant))
    assert seen == {f"{name}@{k}": users for name in METRICS for k in (5, 20)}
