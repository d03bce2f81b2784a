"""Memory for the large arrays of a step on the CPU, which the next step takes again.

A step makes arrays of 3 and 10 MiB whose sizes differ a little from step to step. The C library's heaps are torn apart
by them: with 800 negatives a pair it held 156 MiB where 64 were in use, and took 600 pages a step from the system anew.
"""

import math
import mmap
import threading
import weakref
from collections.abc import Sequence

import numpy as np
import torch

_LEAST = 2**20  # bytes from which on memory is kept here
_SPARE = 1 / 16  # of what was asked for: the next array may be a little larger
_PRIVATE = {"flags": mmap.MAP_PRIVATE} if hasattr(mmap, "MAP_PRIVATE") else {}  # which Windows does not know

_free: list[mmap.mmap] = []
_taking = threading.Lock()  # not for giving back, which a garbage collection may do at any time


def empty(shape: Sequence[int], like: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
    """A tensor of any contents, of a shape, where `like` is and of its dtype unless another is given.

    Its memory comes back here when neither it nor a view of it is left. On a GPU torch does all this itself.
    """
    dtype = dtype or like.dtype
    needed = math.prod(shape) * dtype.itemsize
    if like.device.type != "cpu" or needed < _LEAST:
        return like.new_empty(tuple(shape), dtype=dtype)
    memory = _take(needed)
    array = np.frombuffer(memory, np.uint8, needed)
    weakref.finalize(array, _free.append, memory).atexit = False
    return torch.from_numpy(array).view(dtype).view(tuple(shape))


def select_rows(rows_VD: torch.Tensor, index_U: torch.Tensor) -> torch.Tensor:
    """Copies of some rows, (U, D), as `index_select` makes them; without a gradient."""
    out_UD = empty([len(index_U), *rows_VD.shape[1:]], rows_VD)
    return torch.index_select(rows_VD.detach(), 0, index_U, out=out_UD)


def _take(needed: int) -> mmap.mmap:
    """What fits best of what is free, and is not too large; else anew, in place of what is a little too small."""
    with _taking:
        near = sorted((memory for memory in tuple(_free) if needed <= 2 * len(memory) <= 4 * needed), key=len)
        found = next((memory for memory in near if len(memory) >= needed), near[-1] if near else None)
        if found is not None:
            _free.remove(found)
    if found is None or len(found) < needed:
        return mmap.mmap(-1, needed + int(needed * _SPARE), **_PRIVATE)
    return found
