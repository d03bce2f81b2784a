"""Release and acquire of a counter in memory that processes share: publish what was written before it."""

from numba import njit

from distrec.kernels.numba.intrinsics import fence

_compiled = njit(cache=True, nogil=True, error_model="numpy")


@_compiled
def publish(counter_1, value):
    """Store the counter after all earlier writes (release)."""
    fence()
    counter_1[0] = value


@_compiled
def reached(counter_1, value):
    """Return whether the counter is `value` or larger; later reads then see what was written before it (acquire)."""
    found = counter_1[0] >= value
    fence()
    return found
