"""Histories are the items of lowest hash, a uniformly random sample of a user's items that is fixed in a run."""

import numpy as np
import pytest

from distrec.core.randomness import hash_words
from distrec.sampling.history import histories

MASK = 2**64 - 1


def split_mix(word):
    """Return a step of SplitMix64, by its definition, in Python's integers."""
    word = (word + 0x9E3779B97F4A7C15) & MASK
    word = (word ^ (word >> 30)) * 0xBF58476D1CE4E5B9 & MASK
    word = (word ^ (word >> 27)) * 0x94D049BB133111EB & MASK
    return word ^ (word >> 31)


def test_hash_of_known_words():
    """The first outputs of SplitMix64 from seed 0, as published with the reference implementation."""
    words = np.array([0, 0x9E3779B97F4A7C15], np.uint64)
    assert hash_words(words).tolist() == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4]


@pytest.mark.parametrize("seed", [0, -3, 2**64 + 5])
@pytest.mark.parametrize("h", [1, 4, 9])
def test_histories_against_brute_force(seed, h):
    """Users without items, with fewer and with more than H; and each user alone, as at another worker."""
    items = [[3], [], [0, 2, 5, 7, 8, 2**31 - 1], list(range(0, 60, 3)), []]
    users = np.array([0, 4, 7, 2**31 - 1, 9])
    indptr, indices = np.cumsum([0] + [len(known) for known in items]), np.array(sum(items, []), np.int32)
    found = histories(seed, users, indptr, indices, h)
    assert found.dtype == np.int32
    for row, user, known in zip(found, users.tolist(), items, strict=True):
        lowest = sorted(known, key=lambda item: split_mix(split_mix(user << 32 | item) ^ split_mix(seed & MASK)))[:h]
        assert row.tolist() == lowest + [-1] * (h - len(lowest))
        alone = histories(seed, np.array([user]), np.array([0, len(known)]), np.array(known, np.int32), h)
        assert np.array_equal(alone[0], row)


@pytest.mark.parametrize(("users", "seeds"), [(40_000, 1), (1, 4_000)])
def test_every_item_is_equally_likely_in_each_position(users, seeds):
    """Chi-square of the ordered pairs of first items: 5 * 4 outcomes, 19 degrees of freedom."""
    indptr, indices = np.arange(users + 1) * 5, np.tile(np.array([0, 1, 2, 10, 11], np.int32), users)
    found = np.concatenate([histories(seed, np.arange(users), indptr, indices, 2) for seed in range(seeds)])
    counts = np.unique(found, axis=0, return_counts=True)[1]
    expected = len(found) / 20
    assert len(counts) == 20 and ((counts - expected) ** 2 / expected).sum() < 19 + 5 * np.sqrt(2 * 19)
