"""Extra positives are uniform draws from the positives of the pair's user, keyed by the interaction alone."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distrec.core.randomness import Purpose, uniforms
from distrec.sampling.extra_positives import extra_positives

INDPTR = np.array([0, 1, 1, 8, 208])  # users with 1, 0, 7 and 200 positives
INDICES = np.concatenate([[5], np.arange(20, 27), np.arange(200)]).astype(np.int32)


@settings(deadline=None)  # the first call loads compiled code
@given(st.data())
def test_draws_equal_the_readable_form(data):
    seed, epoch, m = data.draw(st.integers(-1, 2**64)), data.draw(st.integers(0, 9)), data.draw(st.integers(0, 9))
    ordinal_B = np.array(data.draw(st.lists(st.integers(0, 2**40), max_size=6)), np.int64)
    user_B = np.array([data.draw(st.sampled_from([0, 2, 3])) for _ in ordinal_B], np.int32)
    found = extra_positives(seed, epoch, ordinal_B, user_B, (INDPTR, INDICES), m)
    assert found.shape == (len(ordinal_B), m) and found.dtype == np.int32
    for items, user, ordinal in zip(found, user_B, ordinal_B.tolist(), strict=True):
        known = INDICES[INDPTR[user] : INDPTR[user + 1]]
        draws = uniforms(seed, Purpose.EXTRA_POSITIVES, epoch, first=ordinal * m, count=m)
        assert items.tolist() == known[(draws * len(known)).astype(int)].tolist()


def test_draws_are_uniform_in_each_position_and_independent():
    """Chi-square of all draws of a pair together: 7^2 outcomes, 48 degrees of freedom."""
    found = extra_positives(0, 0, np.arange(49_000), np.full(49_000, 2), (INDPTR, INDICES), 2) - 20
    counts = np.bincount(found[:, 0] * 7 + found[:, 1], minlength=49)
    assert counts.sum() == 49_000 and ((counts - 1000) ** 2 / 1000).sum() < 48 + 5 * np.sqrt(2 * 48)


@pytest.mark.parametrize("user", [1, 4, -1])
def test_a_user_outside_the_range_or_without_positives_is_rejected(user):
    with pytest.raises(IndexError, match="without items"):
        extra_positives(0, 0, np.arange(1), np.array([user]), (INDPTR, INDICES), 1)
