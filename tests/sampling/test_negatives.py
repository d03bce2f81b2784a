"""Negatives follow their distribution exactly, and excluded items are never drawn."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distrec.core.randomness import Purpose, uniforms
from distrec.kernels.numba.draws import LINEAR_SEARCH_UP_TO, Stream
from distrec.sampling.config import SamplingConfig
from distrec.sampling.negatives import HALF_WORDS_UP_TO, NegativeSampler, item_masses

DRAWS = 200_000


def sampler(distribution, degrees, positives, beta=0.75):
    masses = item_masses(
        SamplingConfig(distribution=distribution, beta=beta), np.array(degrees), users=max(1, len(positives))
    )
    indptr = np.concatenate([[0], np.cumsum([len(p) for p in positives])]).astype(np.int64)
    indices = np.concatenate([np.array(p, np.int32) for p in positives] + [np.zeros(0, np.int32)])
    return NegativeSampler(masses, (indptr, indices))


def make_stream(seed, epoch=0, kind=0):
    return Stream(*map(np.uint64, (seed, Purpose.NEGATIVES, epoch, kind)))


def assert_bit_equal(found, s, seed, epoch, ordinal, user):
    """Compare compiled draws of the stream (seed, epoch, 1) with the readable form, pair by pair."""
    n = found.shape[1]
    for pair, first in enumerate(ordinal.tolist()):
        draws = uniforms(seed, Purpose.NEGATIVES, epoch, 1, first=first * n, count=n, half_words=s.half_words)
        assert found[pair].tolist() == s.draw(draws, user[pair : pair + 1]).tolist()


def assert_distribution(items, expected):
    """Apply a chi-square test to the items that can be drawn; the others must not occur."""
    counts = np.bincount(items, minlength=len(expected))
    possible = expected > 0
    assert counts[~possible].sum() == 0
    chi_square = ((counts - DRAWS * expected)[possible] ** 2 / (DRAWS * expected[possible])).sum()
    freedom = possible.sum() - 1
    assert chi_square < freedom + 5 * np.sqrt(2 * freedom) + 5


def weights_of(distribution, degrees):
    """Return unnormalised probabilities by their definition."""
    popular = np.where(degrees > 0, degrees**0.75, 0)
    if distribution == "uniform":
        return np.ones(len(degrees))
    return popular if distribution == "popularity" else 0.5 / len(degrees) + 0.5 * popular / popular.sum()


@pytest.mark.parametrize("distribution", ["uniform", "popularity", "mixture"])
@pytest.mark.parametrize("positives", [[], [0], [3, 4, 5], [0, 9], list(range(9)), list(range(1, 10))])
def test_draws_follow_the_distribution_without_the_positives(distribution, positives):
    degrees = np.array([5, 1, 9, 30, 2, 2, 0, 14, 3, 8])
    s = sampler(distribution, degrees, [[1, 2], positives, [7]])
    drawn = s.draw(np.random.default_rng(0).random(DRAWS), np.array([1]))
    weights = weights_of(distribution, degrees)
    weights[positives] = 0
    assert_distribution(drawn, weights / weights.sum())
    possible = np.arange(10)[weights > 0]
    q = np.exp(s.log_q(possible, np.full(len(possible), 1)))
    assert np.allclose(q, (weights / weights.sum())[possible], rtol=1e-6)


def test_popularity_with_exponent_zero_and_unseen_items():
    degrees = np.array([5, 0, 9, 1])
    drawn = sampler("popularity", degrees, [[]], beta=0).draw(np.random.default_rng(0).random(DRAWS), None)
    assert_distribution(drawn, np.array([1, 0, 1, 1]) / 3)
    drawn = sampler("popularity", degrees, [[]], beta=1).draw(np.random.default_rng(0).random(DRAWS), None)
    assert_distribution(drawn, degrees / degrees.sum())


def test_a_user_who_knows_every_item_draws_from_all():
    s = sampler("uniform", np.ones(6), [[1], list(range(6)), []])
    assert s.saturated_U.tolist() == [False, True, False]
    assert_distribution(s.draw(np.random.default_rng(0).random(DRAWS), np.array([1])), np.full(6, 1 / 6))


@given(st.data())
def test_a_positive_is_never_drawn_at_interval_bounds(data):
    """Draws at 0, just below 1, and at and below every interval bound, where an off-by-one error would show."""
    degrees = np.array(data.draw(st.lists(st.integers(1, 50), min_size=2, max_size=12)))
    items = range(len(degrees))
    positives = [sorted(data.draw(st.sets(st.sampled_from(items), max_size=len(degrees) - 1))) for _ in range(3)]
    s = sampler(data.draw(st.sampled_from(["uniform", "popularity", "mixture"])), degrees, positives)
    for user, known in enumerate(positives):
        edges = s.edges / s.total
        draws = np.concatenate([edges, np.nextafter(edges, 0), [0, 1]]).clip(0, np.nextafter(1, 0))
        drawn = s.draw(draws, np.full(len(draws), user))
        assert not set(drawn.tolist()) & set(known)
        assert drawn.min() >= 0 and drawn.max() < len(degrees)


def test_a_large_exponent_leaves_only_the_most_popular_item():
    masses = item_masses(SamplingConfig(distribution="popularity", beta=100), np.array([5000, 3, 0, 4000]), users=10)
    assert masses[0] > 1e9 * masses[3] and masses[1] == 1 and masses[2] == 0


def test_rare_items_keep_a_mass_with_many_users():
    masses = item_masses(SamplingConfig(distribution="popularity", beta=1), np.array([1, 10**12]), users=10**9)
    assert masses[0] >= 1 and (masses.sum() + 1) * 10**9 < 2**63


@settings(deadline=None)  # the first call loads compiled code
@given(st.data())
def test_compiled_draws_equal_the_readable_form(data):
    """Bit for bit: masses, users without positives and with all of them, streams, and N that leaves words unused."""
    degrees = np.array(data.draw(st.lists(st.integers(0, 50), min_size=2, max_size=40)))
    degrees[0] += 1
    sets = st.sets(st.sampled_from(range(len(degrees))))
    positives = [sorted(data.draw(sets)) for _ in range(3)] + [list(range(len(degrees)))]
    s = sampler(data.draw(st.sampled_from(["uniform", "popularity"])), degrees, positives)
    if data.draw(st.booleans()):
        s = NegativeSampler(s.masses_V, None)
    n, seed, epoch = data.draw(st.integers(0, 40)), data.draw(st.integers(0, 2**64 - 1)), data.draw(st.integers(0, 9))
    ordinal = np.array(data.draw(st.lists(st.integers(0, 2**40), max_size=6)), np.int64)
    user = np.array([data.draw(st.integers(0, 3)) for _ in ordinal], np.int32)
    found = s.draw_for_pairs(make_stream(seed, epoch, 1), ordinal, user, n)
    assert found.shape == (len(ordinal), n) and found.dtype == np.int32
    assert_bit_equal(found, s, seed, epoch, ordinal, user)


@pytest.mark.parametrize("distribution", ["uniform", "popularity"])
@pytest.mark.parametrize(
    "known", [LINEAR_SEARCH_UP_TO - 1, LINEAR_SEARCH_UP_TO, LINEAR_SEARCH_UP_TO + 1, 3 * LINEAR_SEARCH_UP_TO + 2]
)
def test_compiled_draws_for_users_with_many_positives(distribution, known):
    """On both sides of the threshold between linear and binary search."""
    draws = np.random.default_rng(known)
    items = 4 * LINEAR_SEARCH_UP_TO
    positives = [[], sorted(draws.choice(items, known, replace=False).tolist()), [5]]
    s = sampler(distribution, draws.integers(1, 50, items), positives)
    user, ordinal = np.array([1, 0, 1, 2], np.int32), np.array([0, 3, 7, 2**30])
    found = s.draw_for_pairs(make_stream(4, 2, 1), ordinal, user, 150)
    assert_bit_equal(found, s, 4, 2, ordinal, user)
    assert not any(set(found[pair].tolist()) & set(positives[user[pair]]) for pair in range(4))


@pytest.mark.parametrize("items", [HALF_WORDS_UP_TO, HALF_WORDS_UP_TO + 1])
@pytest.mark.parametrize("known", [None, [0, 5, 70_000, HALF_WORDS_UP_TO - 1]])
def test_compiled_draws_on_both_sides_of_the_half_word_threshold(items, known):
    positives = None if known is None else (np.array([0, len(known)]), np.array(known, np.int32))
    s = NegativeSampler(np.ones(items, np.int64), positives)
    assert s.half_words == (items == HALF_WORDS_UP_TO)
    assert not sampler("popularity", np.arange(1, 9), [[]]).half_words
    ordinal, user = np.array([0, 1, 2, 3, 2**40 + 1]), np.zeros(5, np.int32)
    found = s.draw_for_pairs(make_stream(4, 2, 1), ordinal, user, 257)  # an odd N starts at either half of a word
    assert_bit_equal(found, s, 4, 2, ordinal, user)
    assert found.min() >= 0 and items * 0.9 < found.max() < items


def test_compiled_draws_of_half_words_follow_the_distribution():
    """Draws made as in training, with known positives excluded."""
    s = sampler("uniform", np.ones(100), [[3, 50, 99], []])
    user = np.arange(400, dtype=np.int32) % 2
    found = s.draw_for_pairs(make_stream(1), np.arange(400), user, DRAWS // 200)
    free = np.ones(100)
    free[[3, 50, 99]] = 0
    assert_distribution(found[::2].ravel(), free / 97)
    assert_distribution(found[1::2].ravel(), np.full(100, 0.01))


@pytest.mark.parametrize("user", [-1, 2, 2**31 - 1])
def test_compiled_draws_reject_a_user_outside_the_range(user):
    s = sampler("uniform", np.ones(5), [[1], [2, 3]])
    with pytest.raises(IndexError, match="outside the range"):
        s.draw_for_pairs(make_stream(0), np.zeros(1, np.int64), np.array([user], np.int32), 3)
