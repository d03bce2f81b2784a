"""Counter-based randomness: every draw is a pure function of (seed, purpose, indices), in any process.

Philox4x64-10 (Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011), numpy's implementation. The key
holds the seed and the purpose; the 256-bit counter holds up to three indices above the index of a block of four draws.
"""

import enum

import numpy as np

_DRAWS_PER_BLOCK = 4  # one Philox counter gives four 64-bit words
_RESOLUTION, _HALF_WORD_RESOLUTION = 2.0**-53, 2.0**-32
SPLITMIX_INCREMENT, _FIRST, _SECOND = map(np.uint64, (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


class Purpose(enum.IntEnum):
    """The purpose of a stream of draws. Two purposes never share a draw. The values are fixed: never reuse one."""

    SHUFFLE = 1
    NEGATIVES = 2
    INIT = 3
    TEST_SPLIT = 4
    VALID_SPLIT = 5
    PLANTED = 6
    EXTRA_POSITIVES = 7
    DROPOUT = 8


def bit_generator(seed: int, purpose: Purpose, *indices: int, first: int = 0) -> np.random.Philox:
    """Return the bit generator of the stream (seed, purpose, indices), positioned at draw `first`.

    Args:
        seed: any integer; its low 64 bits are used.
        purpose: purpose of the draws.
        indices: at most three integers, each below 2**64.
        first: index of the first 64-bit draw that it returns.
    """
    assert len(indices) <= 3, indices
    block, skip = divmod(first, _DRAWS_PER_BLOCK)
    counter = [block, *indices, *[0] * (3 - len(indices))]
    generator = np.random.Philox(
        key=np.array([seed & (2**64 - 1), int(purpose)], np.uint64), counter=np.array(counter, np.uint64)
    )
    if skip:
        generator.random_raw(skip)
    return generator


def generator(seed: int, purpose: Purpose, *indices: int) -> np.random.Generator:
    """Return a numpy generator on the stream (seed, purpose, indices), for shuffles and normal draws."""
    return np.random.Generator(bit_generator(seed, purpose, *indices))


def uniforms(
    seed: int, purpose: Purpose, *indices: int, first: int, count: int, half_words: bool = False
) -> np.ndarray:
    """Return draws `first` .. `first + count` (exclusive) of a stream, float64 in [0, 1).

    Draw k does not depend on `first`. With `half_words` a draw is 32 bits, the lower half of each word first; otherwise
    it is 53 bits of a 64-bit word.
    """
    if half_words:
        skipped = first % 2
        raw = bit_generator(seed, purpose, *indices, first=first // 2).random_raw((skipped + count + 1) // 2)
        return raw.astype("<u8").view("<u4")[skipped : skipped + count] * _HALF_WORD_RESOLUTION
    raw = bit_generator(seed, purpose, *indices, first=first).random_raw(count)
    return (raw >> np.uint64(11)) * _RESOLUTION


def hash_words(words: np.ndarray) -> np.ndarray:
    """Return a well-mixed bijection of 64-bit words, uint64: the next output of SplitMix64 from each as its state.

    Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators", OOPSLA 2014.
    """
    words = words.astype(np.uint64) + SPLITMIX_INCREMENT
    words = (words ^ (words >> np.uint64(30))) * _FIRST
    words = (words ^ (words >> np.uint64(27))) * _SECOND
    return np.asarray(words ^ (words >> np.uint64(31)))
