"""De-duplication of ids in linear time."""

from collections.abc import Sequence
from types import ModuleType

import numpy as np

_MANY = 2**16  # ids


def unique_ids(ids: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """(unique ids, ascending; place of each id among them), int32; ids lie in [0, size). Errors: `unique_of`."""
    unique, (place,) = unique_of([ids], size)
    return unique, place


def unique_of(
    parts: Sequence[np.ndarray], size: int, slot_V: np.ndarray | None = None
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Unique ids of several arrays together.

    A few ids are sorted, which does not touch the whole range; more are marked in an array of `size`, which is linear;
    for very many, the compiled loops are worth their loading: 819,200 ids took 0.9 ms on one core, and numpy 2.1.

    Args:
        parts: one-dimensional arrays of ids in [0, size).
        size: end of the range, V.
        slot_V: another number for each id, a permutation of the range; None: its own.

    Returns:
        The numbers of the ids that occur, ascending, and for each array the place of each id among them; int32.

    Raises:
        IndexError: an id outside the range, where ids are marked.
    """
    count = sum(map(len, parts))
    if count * 16 < size:
        ids = np.concatenate(parts)
        unique, place = np.unique(ids if slot_V is None else slot_V[ids], return_inverse=True)
        places = np.split(place.astype(np.int32), np.cumsum([len(part) for part in parts[:-1]]))
        return unique.astype(np.int32), places
    ways = _compiled() if count >= _MANY else _Plain
    seen_V = np.zeros(size, bool)
    for part in parts:
        ways.mark(part, seen_V)
    unique, place_V = ways.number(seen_V, slot_V)
    return unique, [ways.look_up(place_V, part) for part in parts]


def _compiled() -> ModuleType:
    from distrec.kernels.numba import dedup as marks  # here, as importing numba takes a good part of a second

    return marks


class _Plain:
    """The loops of `compiled/marks.py` in numpy."""

    @staticmethod
    def mark(ids: np.ndarray, seen_V: np.ndarray) -> None:
        np.put(seen_V, ids, True)

    @staticmethod
    def number(seen_V: np.ndarray, slot_V: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        if slot_V is not None:
            seen_V[slot_V] = seen_V.copy()
        unique, place_V = np.flatnonzero(seen_V).astype(np.int32), np.empty(len(seen_V), np.int32)
        place_V[unique] = np.arange(len(unique), dtype=np.int32)
        return unique, place_V if slot_V is None else place_V[slot_V]

    @staticmethod
    def look_up(place_V: np.ndarray, ids: np.ndarray) -> np.ndarray:
        return np.take(place_V, ids)
