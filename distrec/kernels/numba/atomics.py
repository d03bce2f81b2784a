"""A number in memory that several processes share, by which one says that what it wrote before can be read."""

from numba import njit

from distrec.kernels.numba.intrinsics import fence

_compiled = njit(cache=True, nogil=True, error_model="numpy")


@_compiled
def publish(turn_1, turn):
    """Writes the number, after all that was written before."""
    fence()
    turn_1[0] = turn


@_compiled
def reached(turn_1, turn):
    """Whether another has published this number, or a later one. What is read from now on is what it wrote before."""
    found = turn_1[0] >= turn
    fence()
    return found
