"""Independent trainings side by side, without Ray and without communication: an upper bound on what cores can gain."""

import multiprocessing
import statistics
from collections.abc import Sequence
from itertools import islice
from multiprocessing.synchronize import Barrier
from time import perf_counter

import torch

from distrec.data.prepare import prepare
from distrec.sampling.stream import stream
from distrec.training.config import load_config
from distrec.training.trainer import Trainer

_WARM_UP, _STEPS = 8, 40
_barrier: Barrier


def step_ms(overrides: Sequence[str], processes: int) -> float:
    """Return the median step of the slowest of some trainings that run at the same time, one thread each."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(processes, _set_barrier, (context.Barrier(processes),)) as pool:
        return max(pool.map(_train, [overrides] * processes, chunksize=1))


def _set_barrier(barrier: Barrier) -> None:
    global _barrier
    _barrier = barrier


def _train(overrides: Sequence[str]) -> float:
    torch.set_num_threads(1)
    config = load_config(None, overrides)
    trainer = Trainer(config, prepare(config.data), torch.device("cpu"))
    source = trainer.source
    batches = stream(source, 0, 2, source.bytes_per_step, config.train.look_ahead_mib, "thread")
    for batch in islice(batches, _WARM_UP):
        trainer.step(batch)
    _barrier.wait()
    durations = []
    for _ in range(_STEPS):
        start = perf_counter()
        trainer.step(next(batches))
        durations.append((perf_counter() - start) * 1e3)
    batches.close()  # type: ignore[attr-defined]  # a generator: its thread ends
    return statistics.median(durations)
