"""Zeroed memory in huge pages, for per-row arrays of large tables on the CPU."""

import math

import numpy as np
import torch
from torch import Tensor

_HUGE_PAGE = 2**21  # bytes


def zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return zeros, on the CPU in huge pages where the system provides them on request.

    numpy requests them from 4 MiB on; torch does not. Without them, random access to the rows of a table of 10 million
    is bound by page-table walks (benchmarks/optimizer.py: twice the time).
    """
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    numpy_dtype = torch.empty(0, dtype=dtype).numpy().dtype
    needed = math.prod(shape) * numpy_dtype.itemsize
    if needed < _HUGE_PAGE:
        return torch.from_numpy(np.zeros(shape, numpy_dtype))
    memory = np.zeros(-(-needed // _HUGE_PAGE) * _HUGE_PAGE + _HUGE_PAGE, np.uint8)  # whole pages, after alignment
    start = -memory.ctypes.data % _HUGE_PAGE
    return torch.from_numpy(memory[start : start + needed].view(numpy_dtype).reshape(shape))
