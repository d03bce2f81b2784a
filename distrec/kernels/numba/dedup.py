"""Loops of `distrec.kernels.dedup`: ids marked in an array of their range, numbered, and looked up."""

import numpy as np
from numba import njit

_compiled = njit(cache=True, nogil=True, error_model="numpy")


@_compiled
def mark(ids, seen_V):
    """Marks the ids that occur."""
    for k in ids:
        if k < 0 or k >= len(seen_V):
            raise IndexError("an id outside the range")
        seen_V[k] = True


@_compiled
def number(seen_V, slot_V):
    """(the slots of the marked ids, ascending; for each marked id its place among them). Without slots, ids are theirs.

    Marks are brought into the order of the slots and back, as there are fewer ids in the range than there are to mark.
    """
    size, count = len(seen_V), 0
    in_slot_V = np.empty_like(seen_V)
    for k in range(size):
        in_slot_V[k if slot_V is None else slot_V[k]] = seen_V[k]
    unique, place_V, before_V = np.empty(size, np.int32), np.empty(size, np.int32), np.empty(size, np.int32)
    for slot in range(size):
        unique[count], before_V[slot] = slot, count
        count += in_slot_V[slot]
    for k in range(size):
        place_V[k] = before_V[k if slot_V is None else slot_V[k]]
    return unique[:count].copy(), place_V


@_compiled
def look_up(place_V, ids):
    """The place of each id; all of them lie in the range."""
    place = np.empty(len(ids), place_V.dtype)
    for k in range(len(ids)):
        place[k] = place_V[ids[k]]
    return place
