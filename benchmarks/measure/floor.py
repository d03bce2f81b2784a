"""What a piece of work costs at least on this machine: bytes that must move, multiply-adds that must happen."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from report import Row

from distrec.sampling.batch import Batch

_FLOAT = 4
_TIMES = 7


@dataclass(frozen=True)
class Rates:
    """The best of a few attempts: a floor is what the machine can do."""

    bytes_per_s: float
    """Of a copy larger than the caches, read and written bytes together."""
    madds_per_s: float
    """Multiply-adds of a product of two square matrices of 2048 rows, or 8192 on a GPU, float32."""

    def best(self, other: "Rates") -> "Rates":
        """The higher of each."""
        return Rates(max(self.bytes_per_s, other.bytes_per_s), max(self.madds_per_s, other.madds_per_s))


@dataclass(frozen=True)
class Floor:
    """Work that no implementation is spared."""

    bytes: float
    madds: float

    def seconds(self, rates: Rates) -> float:
        """Moving and multiplying can go on at once: the longer of the two."""
        return max(self.bytes / rates.bytes_per_s, self.madds / rates.madds_per_s)


def measure_rates(device: torch.device) -> Rates:
    """With the threads of torch, or of a GPU."""
    on_gpu = device.type == "cuda"
    source = torch.ones(2**30 if on_gpu else 2**26, device=device)
    target = torch.empty_like(source)
    copy_s = _best(lambda: target.copy_(source), device)
    side = 8192 if on_gpu else 2048
    a, b = torch.randn(side, side, device=device), torch.randn(side, side, device=device)
    return Rates(2 * _FLOAT * len(source) / copy_s, side**3 / _best(lambda: a @ b, device))


def step_floor(batch: Batch, negatives: int, dim: int) -> Floor:
    """Of a training step with an optimizer of two moments.

    The batch is read; a touched row and its two moments are read and written; a score and its gradients for both
    sides are D multiply-adds each. Scores, gradients and repeated reads of a row may all stay in the caches.
    """
    arrays = [value for value in vars(batch).values() if isinstance(value, np.ndarray)]
    rows = len(batch.users_U) + len(batch.items_U)
    moved = sum(4 * len(array) for array in arrays) + rows * dim * _FLOAT * 3 * 2
    return Floor(moved, 3.0 * len(batch.user_index_B) * (1 + negatives) * dim)


def floor_rows(name: str, floor: Floor, seconds: float, rates: Rates) -> list[Row]:
    """The floor, and how far from it `seconds` is."""
    least = floor.seconds(rates)
    by = f"{floor.bytes / 1e6:,.3g} MB, {floor.madds / 1e6:,.3g} M multiply-adds"
    return [
        Row(f"{name}: floor", least * 1e3, "ms", by),
        Row(f"{name}: above the floor", seconds / least, "x"),
    ]


def rate_rows(rates: Rates) -> list[Row]:
    """What the floors are made of."""
    return [
        Row("machine: copy", rates.bytes_per_s / 1e9, "GB/s"),
        Row("machine: matrix product", rates.madds_per_s / 1e9, "G multiply-adds/s"),
    ]


def now(device: torch.device) -> float:
    """Seconds, when all that was asked of the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def _best(work: Callable[[], object], device: torch.device) -> float:
    found = []
    for _ in range(_TIMES):
        began = now(device)
        work()
        found.append(now(device) - began)
    return min(found[1:])
