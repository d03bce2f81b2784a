"""Counter-based randomness: every draw is a pure function of (seed, purpose, indices), whoever makes it.

Philox4x64-10 (Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011) as numpy ships it. The key holds
the seed and the purpose; the 256-bit counter holds up to three indices above the number of the block of four draws.
"""

import enum

import numpy as np

_DRAWS_PER_BLOCK = 4  # one Philox counter gives four 64-bit words
_UNIT, _HALF_UNIT = 2.0**-53, 2.0**-32


class Purpose(enum.IntEnum):
    """What a stream of draws is for. Two purposes never share a draw. The numbers are fixed: never reuse one."""

    SHUFFLE = 1
    NEGATIVES = 2
    INIT = 3
    TEST_SPLIT = 4
    VALID_SPLIT = 5
    PLANTED = 6


def bits(seed: int, purpose: Purpose, *indices: int, first: int = 0) -> np.random.Philox:
    """The bit generator of the stream (seed, purpose, indices), standing before draw number `first`.

    Args:
        seed: any integer; its low 64 bits are used.
        purpose: what the draws are for.
        indices: at most three integers, each below 2**64.
        first: number of the first 64-bit draw to hand out.
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
    """A numpy generator on the stream (seed, purpose, indices): for shuffles and normal draws."""
    return np.random.Generator(bits(seed, purpose, *indices))


def uniforms(seed: int, purpose: Purpose, *indices: int, first: int, count: int, halves: bool = False) -> np.ndarray:
    """Draws `first .. first + count` of a stream as float64 in [0, 1): draw k is the same however it is reached.

    `halves`: a draw is half a word, its lower half first, and has 32 bits; otherwise it has 53 of a word's 64.
    """
    if halves:
        skipped = first % 2
        raw = bits(seed, purpose, *indices, first=first // 2).random_raw((skipped + count + 1) // 2)
        return raw.astype("<u8").view("<u4")[skipped : skipped + count] * _HALF_UNIT
    raw = bits(seed, purpose, *indices, first=first).random_raw(count)
    return (raw >> np.uint64(11)) * _UNIT
