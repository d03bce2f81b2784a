"""A pool of memory for the large arrays of a step on the CPU, reused by those of the next steps.

A step allocates arrays of 3 and 10 MiB whose sizes vary a little from step to step. They fragment the heaps of the C
library: with 800 negatives a pair it held 156 MiB of which 64 were in use, and faulted in 600 new pages a step.
"""

import math
import mmap
import threading
import weakref
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

_MIN_BYTES = 2**20  # smaller arrays are left to torch
_HEADROOM = 1 / 16  # added to each request, because the next array may be a little larger
_PRIVATE = {"flags": mmap.MAP_PRIVATE} if hasattr(mmap, "MAP_PRIVATE") else {}  # not defined on Windows

_free: list[mmap.mmap] = []
_lock = threading.Lock()  # held to acquire, not to release: a garbage collection may release at any time


def empty(shape: Sequence[int], like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Return an uninitialised tensor on the device of `like`, and of its dtype unless another is given.

    Its memory returns to the pool when neither it nor a view of it is left. On a GPU torch has a pool of its own.
    """
    dtype = dtype or like.dtype
    needed = math.prod(shape) * dtype.itemsize
    if like.device.type != "cpu" or needed < _MIN_BYTES:
        return like.new_empty(tuple(shape), dtype=dtype)
    memory = _acquire(needed)
    array = np.frombuffer(memory, np.uint8, needed)
    weakref.finalize(array, _free.append, memory).atexit = False
    return torch.from_numpy(array).view(dtype).view(tuple(shape))


def select_rows(rows_VD: Tensor, index_U: Tensor) -> Tensor:
    """Return copies of some rows, (U, D): `index_select` into memory of the pool, without a gradient."""
    out_UD = empty([len(index_U), *rows_VD.shape[1:]], rows_VD)
    return torch.index_select(rows_VD.detach(), 0, index_U, out=out_UD)


def _acquire(needed: int) -> mmap.mmap:
    """Return the smallest free block of `needed` to twice as many bytes, or else a new one.

    A new block replaces the largest free one that is less than twice too small.
    """
    with _lock:
        near = sorted((memory for memory in tuple(_free) if needed <= 2 * len(memory) <= 4 * needed), key=len)
        found = next((memory for memory in near if len(memory) >= needed), near[-1] if near else None)
        if found is not None:
            _free.remove(found)
    if found is None or len(found) < needed:
        return mmap.mmap(-1, needed + int(needed * _HEADROOM), **_PRIVATE)
    return found
