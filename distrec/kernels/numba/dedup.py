"""Loops of `distrec.kernels.dedup`: mark ids in an array over their range, enumerate the marked ones, look ids up."""

import numpy as np
from numba import njit

_compiled = njit(cache=True, nogil=True, error_model="numpy")


@_compiled
def mark(ids, seen_V):
    """Set `seen_V` at each id. Raises IndexError for an id outside the range."""
    for k in ids:
        if k < 0 or k >= len(seen_V):
            raise IndexError("an id outside the range")
        seen_V[k] = True


@_compiled
def enumerate_marked(seen_V, slot_V):
    """Return the slots of the marked ids, ascending, and for each id the index of its slot among them, (V,).

    Without `slot_V`, the slot of an id is the id. The marks, not the ids, are permuted into slot order: the range has
    fewer entries than there are ids to mark.
    """
    size, count = len(seen_V), 0
    in_slot_V = np.empty_like(seen_V)
    for k in range(size):
        in_slot_V[k if slot_V is None else slot_V[k]] = seen_V[k]
    unique, index_V, before_V = np.empty(size, np.int32), np.empty(size, np.int32), np.empty(size, np.int32)
    for slot in range(size):
        unique[count], before_V[slot] = slot, count
        count += in_slot_V[slot]
    for k in range(size):
        index_V[k] = before_V[k if slot_V is None else slot_V[k]]
    return unique[:count].copy(), index_V


@_compiled
def look_up(index_V, ids):
    """Return `index_V[ids]`. Every id must lie in the range."""
    index = np.empty(len(ids), index_V.dtype)
    for k in range(len(ids)):
        index[k] = index_V[ids[k]]
    return index
