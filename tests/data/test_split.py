"""The held-out split: exact counts; a pure function of seed, purpose and pair, in any order."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distrec.core.randomness import Purpose
from distrec.data.split import hold_out

pairs = st.sets(st.tuples(st.integers(0, 8), st.integers(0, 40)), max_size=80).map(sorted)
fractions = st.one_of(st.sampled_from([0.0, 0.1, 0.2, 0.25, 0.5, 0.999]), st.floats(0, 0.9999))


def columns(pairs):
    table = np.array(pairs, np.int32).reshape(-1, 2)
    return table[:, 0], table[:, 1]


@settings(max_examples=150, deadline=None)
@given(pairs=pairs, fraction=fractions, seed=st.integers(-(2**64), 2**64))
def test_counts_of_each_user(pairs, fraction, seed):
    users, items = columns(pairs)
    held = hold_out(users, items, fraction, seed, Purpose.TEST_SPLIT)
    for user in np.unique(users):
        n, chosen = int((users == user).sum()), int(held[users == user].sum())
        assert chosen <= n - 1
        assert chosen in {min(int(fraction * n), n - 1), min(int(fraction * n) + 1, n - 1)}
        if fraction * n == int(fraction * n):
            assert chosen == min(int(fraction * n), n - 1)


@settings(max_examples=100, deadline=None)
@given(pairs=pairs, fraction=fractions, order=st.randoms(use_true_random=False))
def test_result_does_not_depend_on_the_order_of_the_input(pairs, fraction, order):
    shuffled = list(pairs)
    order.shuffle(shuffled)
    held = {}
    for name, some in (("sorted", pairs), ("shuffled", shuffled)):
        mask = hold_out(*columns(some), fraction, 5, Purpose.VALID_SPLIT)
        held[name] = {pair for pair, chosen in zip(some, mask, strict=True) if chosen}
    assert held["sorted"] == held["shuffled"]


@settings(max_examples=50, deadline=None)
@given(pairs=pairs)
def test_a_user_is_split_independently_of_other_users(pairs):
    users, items = columns(pairs)
    together = hold_out(users, items, 0.3, 1, Purpose.TEST_SPLIT)
    for user in np.unique(users):
        alone = hold_out(users[users == user], items[users == user], 0.3, 1, Purpose.TEST_SPLIT)
        np.testing.assert_array_equal(together[users == user], alone)


def test_a_larger_share_is_a_superset():
    users, items = (grid.ravel() for grid in np.meshgrid(np.arange(50), np.arange(20), indexing="ij"))
    small = hold_out(users, items, 0.1, 0, Purpose.TEST_SPLIT)
    large = hold_out(users, items, 0.5, 0, Purpose.TEST_SPLIT)
    assert small.sum() == 100 and large.sum() == 500
    assert large[small].all()


def test_the_share_is_met_on_average_for_users_of_few_interactions():
    users, items = np.repeat(np.arange(20_000), 3), np.tile(np.arange(3), 20_000)
    held = hold_out(users, items, 0.1, 0, Purpose.VALID_SPLIT)
    # 0.3 of an interaction a user: 6000 with a standard deviation of sqrt(20000 * 0.3 * 0.7) = 65.
    assert abs(held.sum() - 6000) < 4 * 65
    assert abs(np.bincount(items[held]) - 2000).max() < 4 * 45  # all items are equally likely


@pytest.mark.parametrize("other", [(1, Purpose.TEST_SPLIT), (0, Purpose.VALID_SPLIT), (2**63, Purpose.TEST_SPLIT)])
def test_seeds_and_purposes_choose_independently(other):
    users, items = np.repeat(np.arange(1000), 10), np.tile(np.arange(10), 1000)
    one = hold_out(users, items, 0.5, 0, Purpose.TEST_SPLIT)
    two = hold_out(users, items, 0.5, *other)
    # Independent halves of 5 out of 10 share 2.5 a user on average; variance 25/36 a user.
    assert abs((one & two).sum() - 2500) < 5 * np.sqrt(1000 * 25 / 36)


def _reference(users: int, items: int, fraction: float, seed: int) -> list[list[int]]:
    """Return the held-out items of each user by the definition, in Python integers."""

    def splitmix(state, value):
        z = (state + (value + 1) * 0x9E3779B97F4A7C15) % 2**64
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
        return z ^ (z >> 31)

    held = []
    for user in range(users):
        state = splitmix(splitmix(seed % 2**64, int(Purpose.TEST_SPLIT)), user)
        quota = min(int(fraction * items + (state >> 32) / 2**32), items - 1)
        held.append(sorted(sorted(range(items), key=lambda item: splitmix(state, item))[:quota]))
    return held


@pytest.mark.parametrize("seed", [7, -7, 2**70 + 1])
def test_matches_the_definition(seed):
    """The hash is part of the format: other bits change every prepared data set."""
    users, items = np.repeat(np.arange(40), 9), np.tile(np.arange(9), 40)
    held = hold_out(users, items, 0.4, seed, Purpose.TEST_SPLIT)
    assert [items[(users == user) & held].tolist() for user in range(40)] == _reference(40, 9, 0.4, seed)
    if seed == 7:
        assert _reference(4, 5, 0.4, seed) == [[1, 2], [2, 4], [1, 2], [1, 4]]


def test_nothing_to_split():
    empty = np.empty(0, np.int32)
    assert hold_out(empty, empty, 0.5, 0, Purpose.TEST_SPLIT).shape == (0,)
    assert not hold_out(np.array([3]), np.array([4]), 0.99, 0, Purpose.TEST_SPLIT).any()
    assert not hold_out(np.zeros(9, int), np.arange(9), 0.0, 0, Purpose.TEST_SPLIT).any()
