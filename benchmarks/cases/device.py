"""Steps alone, on a GPU where there is one: no Ray, batches that are there already, so that the device sets the pace.

Beside a step stands how long its kernels ran: the rest is the host, which has not asked for them yet. Bytes are those
of the floor, which no implementation is spared, over the device's own rate of copying.
"""

import itertools
import statistics

import torch
from measure.bench import Bench
from measure.floor import Floor, floor_rows, now, step_floor
from report import Row, bar_row

from cases import bpr, exact, softmax, wait
from distrec.core.config import load
from distrec.data.prepare import prepare
from distrec.training.config import Config
from distrec.training.trainer import Trainer

_WARM, _STEPS, _BATCHES, _LOOPS = 10, 50, 16, 9
_LARGE = 8192  # pairs of a step for a GPU, whose kernels are too short at 1024 for the host to keep up
_PAIRS = "softmax, 800 a pair"
_SETTINGS = {
    "BPR": bpr.WORDS,
    "64 a pair": wait.WORDS,
    _PAIRS: [*softmax.WORDS, "sampling.shared=false"],
    "softmax, 800 shared": [*softmax.WORDS, "sampling.shared=true"],
    "exact softmax": exact.WORDS,
}


def measure(bench: Bench) -> list[Row]:
    """Each setting by itself, and then the plain loop; with a larger batch too where there is a GPU."""
    rows, settings, batches = [], dict(_SETTINGS), [softmax.BATCH]
    if bench.device.type == "cuda":
        batches.append(_LARGE)
        settings[f"{_PAIRS}, batch {_LARGE}"] = [*settings[_PAIRS], f"train.batch_size={_LARGE}"]
    for name, words in settings.items():
        config = load(Config, None, bench.words_on_data([*words, "train.workers=1"], thin=True))
        trainer = Trainer(config, prepare(config.data), bench.device)
        steps = _Steps(trainer)
        steps.run(_WARM)
        rounds = [steps.run(_STEPS) for _ in range(2 if bench.quick else 5)]
        rows.append(bar_row(f"{name}, no stream: step", rounds, "ms"))
        if bench.device.type == "cuda":
            rows.append(Row(f"{name}, no stream: its kernels", steps.kernels_ms(), "ms"))
        floor = step_floor(trainer.source.batch(0, 0), config.drawn.negatives, config.model.dim)
        if not trainer.sees_scores:
            floor = exact.floor(bench)
        rows += floor_rows(f"{name}, no stream: step", floor, statistics.median(rounds) / 1e3, bench.rates)
        rows.append(_bandwidth(f"{name}, no stream: bytes", floor, statistics.median(rounds), bench))
    for batch in batches:
        with bench.rival("plain_torch.py", str(batch), str(softmax.NEGATIVES)) as loop:
            plain = [loop.seconds() * 1e3 for _ in range(_LOOPS)][2:]
        rows.append(bar_row(f"{_PAIRS}, batch {batch}, plain loop: step", plain, "ms"))
    return rows


class _Steps:
    """The same few batches again and again, each asked for ahead of its step."""

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        self._batches = itertools.cycle(trainer.source.batches(0, 0, min(_BATCHES, trainer.source.steps)))
        self._ahead = next(self._batches)

    def run(self, steps: int) -> float:
        """Milliseconds of a step, the mean of so many."""
        began = now(self._trainer.device)
        for _ in range(steps):
            batch, self._ahead = self._ahead, next(self._batches)
            self._trainer.step(batch, self._ahead)
        return (now(self._trainer.device) - began) / steps * 1e3

    def kernels_ms(self) -> float:
        """What the kernels and copies of a step ran, all together."""
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            self.run(_BATCHES)
        return sum(event.self_device_time_total for event in profile.key_averages()) / _BATCHES / 1e3


def _bandwidth(name: str, floor: Floor, step_ms: float, bench: Bench) -> Row:
    rate = floor.bytes / step_ms * 1e3
    return Row(name, rate / bench.rates.bytes_per_s, "x", f"{rate / 1e9:.3g} GB/s of what a copy moves")
