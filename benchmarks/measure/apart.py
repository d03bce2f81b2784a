"""Trainings side by side that know nothing of each other, without Ray: what a second core is worth at best."""

import multiprocessing
import statistics
from collections.abc import Sequence
from itertools import islice
from multiprocessing.synchronize import Barrier
from time import perf_counter

import torch

from distrec.core.config import load
from distrec.data.prepare import prepare
from distrec.sampling.stream.ray import stream
from distrec.training.config import Config
from distrec.training.trainer import Trainer

_WARM, _STEPS = 8, 40


def step_ms(words: Sequence[str], at_once: int) -> float:
    """Median of a step, of the slowest of so many trainings of one thread each that run at once."""
    context = multiprocessing.get_context("spawn")
    together = context.Barrier(at_once)
    with context.Pool(at_once, _meet_at, (together,)) as processes:
        return max(processes.map(_train, [words] * at_once, chunksize=1))


def _meet_at(barrier: Barrier) -> None:
    global _together
    _together = barrier


def _train(words: Sequence[str]) -> float:
    torch.set_num_threads(1)
    config = load(Config, None, words)
    trainer = Trainer(config, prepare(config.data), torch.device("cpu"))
    source = trainer.source
    batches = stream(source, 0, 2, source.bytes_per_step, config.train.look_ahead_mib, "thread")
    for batch in islice(batches, _WARM):
        trainer.step(batch)
    _together.wait()
    taken = []
    for _ in range(_STEPS):
        began = perf_counter()
        trainer.step(next(batches))
        taken.append((perf_counter() - began) * 1e3)
    batches.close()
    return statistics.median(taken)
