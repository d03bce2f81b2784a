"""De-duplication of ids in a known range."""

from collections.abc import Sequence

import numpy as np

_SORT_UP_TO = 2**13  # ids. Below, sorting is fast enough (0.2 ms) not to import numba, which takes 0.5 s per process.


def unique_ids(ids: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the unique ids, ascending, and the inverse index; int32. `unique_of` for one array and no slots."""
    unique, (inverse,) = unique_of([ids], size)
    return unique, inverse


def unique_of(
    parts: Sequence[np.ndarray], size: int, slot_V: np.ndarray | None = None
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Return the unique ids of several arrays together.

    Few ids, absolutely or relative to the range, are sorted. More are marked in an array of length `size` by compiled
    loops, in linear time: on one core and a range of 41,000, 3,000 ids take 0.07 ms sorted and 0.09 ms marked, 10,000
    ids 0.27 and 0.12, 60,000 ids 2.6 and 0.16, 819,200 ids 100 and 1.2.

    Args:
        parts: one-dimensional arrays of ids in [0, size).
        size: end of the range, V.
        slot_V: number to use in place of each id, a permutation of the range. None: the ids themselves.

    Returns:
        The unique slots, ascending, and for each array the index of each id's slot among them; int32.

    Raises:
        IndexError: an id lies outside the range.
    """
    count = sum(map(len, parts))
    if count <= _SORT_UP_TO or count * 16 < size:
        ids = np.concatenate(parts)
        if len(ids) and not 0 <= ids.min() <= ids.max() < size:
            raise IndexError("an id outside the range")
        unique, inverse = np.unique(ids if slot_V is None else slot_V[ids], return_inverse=True)
        inverses = np.split(inverse.astype(np.int32), np.cumsum([len(part) for part in parts[:-1]]))
        return unique.astype(np.int32), inverses
    from distrec.kernels.numba import dedup as loops

    seen_V = np.zeros(size, bool)
    for part in parts:
        loops.mark(part, seen_V)
    unique, index_V = loops.enumerate_marked(seen_V, slot_V)
    return unique, [loops.look_up(index_V, part) for part in parts]
