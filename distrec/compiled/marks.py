"""Loops of `distrec.unique`: ids marked in an array of their range, and the places of the marked ones looked up."""

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
def look_up(place_V, ids):
    """The place of each id; all of them lie in the range."""
    place = np.empty(len(ids), place_V.dtype)
    for k in range(len(ids)):
        place[k] = place_V[ids[k]]
    return place
