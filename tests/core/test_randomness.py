"""Draw k of a stream does not depend on the first draw requested, and streams are distinct."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from distrec.core.randomness import Purpose, bit_generator, generator, uniforms


@given(st.integers(0, 2**64 - 1), st.integers(0, 500), st.integers(0, 50))
def test_a_draw_depends_on_its_index_only(seed, first, count):
    whole = uniforms(seed, Purpose.NEGATIVES, 3, 1, first=0, count=first + count)
    assert np.array_equal(uniforms(seed, Purpose.NEGATIVES, 3, 1, first=first, count=count), whole[first:])


@given(st.integers(0, 2**64 - 1), st.integers(0, 500), st.integers(0, 50))
def test_a_half_word_depends_on_its_index_only(seed, first, count):
    words = bit_generator(seed, Purpose.NEGATIVES, 3, 1).random_raw((first + count + 1) // 2).tolist()
    halves = [half for word in words for half in (word % 2**32 / 2**32, word // 2**32 / 2**32)]
    drawn = uniforms(seed, Purpose.NEGATIVES, 3, 1, first=first, count=count, half_words=True)
    assert drawn.tolist() == halves[first : first + count]


def test_streams_differ_in_seed_purpose_and_each_index():
    streams = [(0, Purpose.SHUFFLE), (1, Purpose.SHUFFLE), (0, Purpose.INIT)]
    streams += [
        (0, Purpose.SHUFFLE, 1),
        (0, Purpose.SHUFFLE, 0, 1),
        (0, Purpose.SHUFFLE, 0, 0, 1),
        (-1, Purpose.SHUFFLE),
    ]
    draws = [tuple(uniforms(*stream, first=0, count=4)) for stream in streams]
    assert len(set(draws)) == len(streams)


def test_draws_are_uniform():
    counts = np.histogram(uniforms(7, Purpose.NEGATIVES, first=0, count=100_000), bins=100, range=(0, 1))[0]
    chi_square = ((counts - 1000) ** 2 / 1000).sum()
    assert 55 < chi_square < 160  # 99 degrees of freedom: quantiles 0.01 % and 99.99 %


def test_known_values():
    """A change of these values changes every run: Philox4x64-10, key (seed, purpose), counter (block, indices)."""
    assert generator(0, Purpose.SHUFFLE, 0, 0).permutation(8).tolist() == [2, 0, 4, 1, 7, 5, 3, 6]
