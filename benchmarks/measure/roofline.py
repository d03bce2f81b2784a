"""Roofline lower bounds: bytes that must be moved and multiply-adds that must be done, at the rates of this machine."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from report import Row

from distrec.sampling.batch import Batch

_FLOAT = 4
_REPETITIONS = 7


@dataclass(frozen=True)
class Rates:
    """Measured rates of the machine: the best of a few repetitions, so that bounds computed from them are valid."""

    bytes_per_s: float
    """Bandwidth of a copy larger than the caches, read and written bytes together."""
    madds_per_s: float
    """Multiply-adds of a product of two square float32 matrices of 2048 rows, or 8192 on a GPU."""

    def best(self, other: "Rates") -> "Rates":
        """Return the higher of each rate."""
        return Rates(max(self.bytes_per_s, other.bytes_per_s), max(self.madds_per_s, other.madds_per_s))


@dataclass(frozen=True)
class Work:
    """The least work of any implementation."""

    bytes: float
    madds: float

    def seconds(self, rates: Rates) -> float:
        """Return the lower bound on the time, with memory traffic and arithmetic fully overlapped."""
        return max(self.bytes / rates.bytes_per_s, self.madds / rates.madds_per_s)


def measure_rates(device: torch.device) -> Rates:
    """Measure the rates of a device; of the CPU, with torch's number of threads."""
    on_gpu = device.type == "cuda"
    source = torch.ones(2**30 if on_gpu else 2**26, device=device)
    target = torch.empty_like(source)
    copy_s = _best(lambda: target.copy_(source), device)
    side = 8192 if on_gpu else 2048
    a, b = torch.randn(side, side, device=device), torch.randn(side, side, device=device)
    return Rates(2 * _FLOAT * len(source) / copy_s, side**3 / _best(lambda: a @ b, device))


def step_work(batch: Batch, negatives: int, dim: int) -> Work:
    """Return the least work of a training step with an optimizer of two moments.

    The batch is read; each touched row and its two moments are read and written; a score and its gradients for both
    sides are D multiply-adds each. Scores, gradients and repeated reads of a row are assumed to stay in the caches.
    """
    arrays = [value for value in vars(batch).values() if isinstance(value, np.ndarray)]
    rows = len(batch.users_U) + len(batch.items_U)
    moved = sum(4 * len(array) for array in arrays) + rows * dim * _FLOAT * 3 * 2
    return Work(moved, 3.0 * len(batch.user_index_B) * (1 + negatives) * dim)


def bound_rows(name: str, work: Work, seconds: float, rates: Rates) -> list[Row]:
    """Return the lower bound, and the ratio of a measured time to it."""
    bound = work.seconds(rates)
    detail = f"{work.bytes / 1e6:,.3g} MB, {work.madds / 1e6:,.3g} M multiply-adds"
    return [
        Row(f"{name}: lower bound", bound * 1e3, "ms", detail),
        Row(f"{name}: measured / lower bound", seconds / bound, "x"),
    ]


def rate_rows(rates: Rates) -> list[Row]:
    """Return the rates from which the lower bounds are computed."""
    return [
        Row("machine: copy", rates.bytes_per_s / 1e9, "GB/s"),
        Row("machine: matrix product", rates.madds_per_s / 1e9, "G multiply-adds/s"),
    ]


def now(device: torch.device) -> float:
    """Return the time in seconds, after synchronising with the device."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def _best(work: Callable[[], object], device: torch.device) -> float:
    found = []
    for _ in range(_REPETITIONS):
        start = now(device)
        work()
        found.append(now(device) - start)
    return min(found[1:])
