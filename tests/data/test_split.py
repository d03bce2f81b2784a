"""Held-out splits: exact counts against the definition; a function of seed, purpose, ids and times, in any order."""

import math

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distrec.core.errors import UserError
from distrec.core.randomness import Purpose
from distrec.data.split import Split, hash_ids, hold_out

pairs = st.sets(st.tuples(st.integers(0, 8), st.integers(0, 40)), max_size=80).map(sorted)
fractions = st.one_of(st.sampled_from([0.0, 0.1, 0.2, 0.25, 0.5, 0.999]), st.floats(0, 0.9999))
METHODS = ("random", "leave_one_out", "leave_last", "time_user", "time_global")


def columns(pairs):
    table = np.array(pairs, np.int32).reshape(-1, 2)
    return table[:, 0], table[:, 1]


def split(users, items, fraction, seed=0, purpose=Purpose.TEST_SPLIT, method="random", times=None):
    """Hold out of pairs whose ids are their codes."""
    ids = [hash_ids(pa.array(np.arange(codes.max(initial=-1) + 1))) for codes in (users, items)]
    return hold_out(users, items, *ids, Split(method, fraction, seed, purpose), times)


@settings(max_examples=150, deadline=None)
@given(pairs=pairs, fraction=fractions, seed=st.integers(-(2**64), 2**64))
def test_counts_of_each_user(pairs, fraction, seed):
    users, items = columns(pairs)
    held = split(users, items, fraction, seed)
    for user in np.unique(users):
        n, chosen = int((users == user).sum()), int(held[users == user].sum())
        assert chosen <= n - 1
        assert chosen in {min(int(fraction * n), n - 1), min(int(fraction * n) + 1, n - 1)}
        if fraction * n == int(fraction * n):
            assert chosen == min(int(fraction * n), n - 1)


@settings(max_examples=100, deadline=None)
@given(pairs=pairs, fraction=fractions, method=st.sampled_from(METHODS[:4]), data=st.data())
def test_result_depends_neither_on_the_order_of_the_input_nor_on_other_users(pairs, fraction, method, data):
    times = np.array([data.draw(st.integers(0, 5)) for _ in pairs])
    order = np.array(data.draw(st.permutations(range(len(pairs)))), int)
    users, items = columns(pairs)
    held = split(users, items, fraction, method=method, times=times)
    shuffled = split(users[order], items[order], fraction, method=method, times=times[order])
    np.testing.assert_array_equal(shuffled, held[order])
    for user in np.unique(users):
        own = users == user
        np.testing.assert_array_equal(
            split(users[own], items[own], fraction, 0, method=method, times=times[own]), held[own]
        )


@settings(max_examples=200, deadline=None)
@given(pairs=pairs, fraction=fractions, method=st.sampled_from(METHODS), data=st.data())
def test_splits_by_time_and_of_one_against_a_loop(pairs, fraction, method, data):
    times = np.array([data.draw(st.integers(-3, 9)) for _ in pairs], float)
    users, items = columns(pairs)
    if method == "time_global":
        wanted = round(fraction * len(pairs))
        expected = times >= sorted(times)[-wanted] if wanted else np.zeros(len(pairs), bool)
        if len(pairs) and expected.all():
            with pytest.raises(UserError, match="leaves none for training"):
                split(users, items, fraction, method=method, times=times)
            return
        np.testing.assert_array_equal(split(users, items, fraction, method=method, times=times), expected)
        return
    held = split(users, items, fraction, method=method, times=times)
    for user in np.unique(users):
        own = users == user
        n, chosen = int(own.sum()), int(held[own].sum())
        if method.startswith("leave"):
            assert chosen == min(1, n - 1)
        else:
            assert min(math.floor(fraction * n), n - 1) <= chosen <= min(math.ceil(fraction * n), n - 1)
        if method in ("leave_last", "time_user"):
            assert max(times[own & ~held]) <= min(times[own & held], default=math.inf)


ids = st.one_of(
    st.sets(st.integers(-(2**63), 2**63 - 1), min_size=1).map(sorted),
    st.sets(st.text(min_size=1), min_size=1).map(lambda words: sorted(w.encode("utf-8", "ignore") for w in words)),
)


@settings(deadline=None)
@given(ids=ids)
def test_hash_of_ids_matches_the_definition(ids):
    """The hash is part of the format: other bits change every prepared data set."""
    texts = [text if isinstance(text, bytes) else str(text).encode() for text in ids]
    array = pa.array(ids) if isinstance(ids[0], int) else pa.array([text.decode() for text in texts])
    assert hash_ids(array).tolist() == [_hash(text) for text in texts]
    assert hash_ids(array[1:]).tolist() == [_hash(text) for text in texts[1:]]


def _splitmix(state, value):
    z = (state + (value + 1) * 0x9E3779B97F4A7C15) % 2**64
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
    return z ^ (z >> 31)


def _hash(text: bytes) -> int:
    state = _splitmix(0, len(text))
    for start in range(0, len(text), 8):
        state = _splitmix(state, int.from_bytes(text[start : start + 8], "little"))
    return state


def _reference(users: int, items: int, fraction: float, seed: int) -> list[list[int]]:
    """Return the held-out items of each user by the definition, in Python integers."""
    held = []
    for user in range(users):
        state = _splitmix(_splitmix(seed % 2**64, int(Purpose.TEST_SPLIT)), _hash(str(user).encode()))
        quota = min(int(fraction * items + (state >> 32) / 2**32), items - 1)
        by_hash = sorted(range(items), key=lambda item: _splitmix(state, _hash(str(item).encode())))
        held.append(sorted(by_hash[items - quota :]))
    return held


@pytest.mark.parametrize("seed", [7, -7, 2**70 + 1])
def test_random_split_matches_the_definition(seed):
    users, items = np.repeat(np.arange(40), 9), np.tile(np.arange(9), 40)
    held = split(users, items, 0.4, seed)
    assert [items[(users == user) & held].tolist() for user in range(40)] == _reference(40, 9, 0.4, seed)


def test_a_larger_share_is_a_superset():
    users, items = (grid.ravel() for grid in np.meshgrid(np.arange(50), np.arange(20), indexing="ij"))
    small, large = split(users, items, 0.1), split(users, items, 0.5)
    assert small.sum() == 100 and large.sum() == 500
    assert large[small].all()


def test_the_share_is_met_on_average_for_users_of_few_interactions():
    users, items = np.repeat(np.arange(20_000), 3), np.tile(np.arange(3), 20_000)
    held = split(users, items, 0.1, 0, Purpose.VALID_SPLIT)
    # 0.3 of an interaction a user: 6000 with a standard deviation of sqrt(20000 * 0.3 * 0.7) = 65.
    assert abs(held.sum() - 6000) < 4 * 65
    assert abs(np.bincount(items[held]) - 2000).max() < 4 * 45  # all items are equally likely


@pytest.mark.parametrize("other", [(1, Purpose.TEST_SPLIT), (0, Purpose.VALID_SPLIT), (2**63, Purpose.TEST_SPLIT)])
def test_seeds_and_purposes_choose_independently(other):
    users, items = np.repeat(np.arange(1000), 10), np.tile(np.arange(10), 1000)
    one, two = split(users, items, 0.5), split(users, items, 0.5, *other)
    # Independent halves of 5 out of 10 share 2.5 a user on average; variance 25/36 a user.
    assert abs((one & two).sum() - 2500) < 5 * np.sqrt(1000 * 25 / 36)


@pytest.mark.parametrize("method", METHODS)
def test_nothing_to_split(method):
    empty = np.empty(0, np.int32)
    assert split(empty, empty, 0.5, method=method, times=np.empty(0)).shape == (0,)
    if method != "time_global":
        assert not split(np.array([3]), np.array([4]), 0.99, method=method, times=np.zeros(1)).any()
    if not method.startswith("leave"):
        assert not split(np.zeros(9, int), np.arange(9), 0.0, method=method, times=np.arange(9)).any()
