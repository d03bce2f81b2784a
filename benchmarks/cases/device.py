"""Steps without Ray on batches computed in advance, so that the device limits the speed; on a GPU where there is one.

On a GPU each step is listed with the total time of its kernels; the difference is time in which the GPU waits for the
host to launch them. The bandwidth is the bytes of the roofline lower bound over the time of the step.
"""

import itertools
import statistics

import torch
from measure.bench import Bench
from measure.roofline import Work, bound_rows, now, step_work
from report import Row, bar_row

from cases import batch_wait, bpr, exact_softmax, sampled_softmax
from distrec.data.prepare import prepare
from distrec.training.config import load_config
from distrec.training.trainer import Trainer

_WARM_UP, _STEPS, _BATCHES, _LOOPS = 10, 50, 16, 9
_LARGE = 8192  # pairs a step on a GPU: with 1024 the kernels take less time than their launches
_PAIRS = "softmax, 800 a pair"
_SETTINGS = {
    "BPR": bpr.SETTINGS,
    "64 a pair": batch_wait.SETTINGS,
    _PAIRS: [*sampled_softmax.SETTINGS, "sampling.shared=false"],
    "softmax, 800 shared": [*sampled_softmax.SETTINGS, "sampling.shared=true"],
    "exact softmax": exact_softmax.SETTINGS,
}


def measure(bench: Bench) -> list[Row]:
    """Measure each setting, then the plain loop; on a GPU with a larger batch too."""
    rows: list[Row] = []
    settings, batches = dict(_SETTINGS), [sampled_softmax.BATCH]
    if bench.device.type == "cuda":
        batches.append(_LARGE)
        settings[f"{_PAIRS}, batch {_LARGE}"] = [*settings[_PAIRS], f"train.batch_size={_LARGE}"]
    for name, given in settings.items():
        rows += _step_rows(bench, f"{name}, no stream", given)
    for batch in batches:
        with bench.rival("plain_torch.py", str(batch), str(sampled_softmax.NEGATIVES)) as loop:
            plain = [loop.seconds() * 1e3 for _ in range(_LOOPS)][2:]
        rows.append(bar_row(f"{_PAIRS}, batch {batch}, plain loop: step", plain, "ms"))
    return rows


def _step_rows(bench: Bench, name: str, settings: list[str]) -> list[Row]:
    config = load_config(None, bench.with_data([*settings, "train.workers=1", "train.capture=false"], thin=True))
    trainer = Trainer(config, prepare(config.data), bench.device)
    steps = _Steps(trainer)
    steps.run(_WARM_UP)
    rounds = [steps.run(_STEPS) for _ in range(2 if bench.quick else 5)]
    rows = [bar_row(f"{name}: step", rounds, "ms")]
    if bench.device.type == "cuda":
        rows.append(Row(f"{name}: its kernels", steps.kernels_ms(), "ms"))
    work = step_work(trainer.source.batch(0, 0), config.effective_sampling.negatives, config.model.dim)
    if "catalogue" in config.loss.needs():
        work = exact_softmax.work(bench)
    rows += bound_rows(f"{name}: step", work, statistics.median(rounds) / 1e3, bench.rates)
    return [*rows, _bandwidth(f"{name}: bandwidth / copy", work, statistics.median(rounds), bench)]


class _Steps:
    """Runs steps over a few batches in turn, each prefetched during the step before."""

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        self._batches = itertools.cycle(trainer.source.batches(0, 0, min(_BATCHES, trainer.source.steps)))
        self._following = next(self._batches)

    def run(self, steps: int) -> float:
        """Return the mean duration of some steps, in milliseconds."""
        start = now(self._trainer.device)
        for _ in range(steps):
            batch, self._following = self._following, next(self._batches)
            self._trainer.step(batch, self._following)
        return (now(self._trainer.device) - start) / steps * 1e3

    def kernels_ms(self) -> float:
        """Return the total time of the kernels and copies of a step, in milliseconds."""
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            self.run(_BATCHES)
        return float(sum(event.self_device_time_total for event in profile.key_averages())) / _BATCHES / 1e3


def _bandwidth(name: str, work: Work, step_ms: float, bench: Bench) -> Row:
    rate = work.bytes / step_ms * 1e3
    return Row(name, rate / bench.rates.bytes_per_s, "x", f"{rate / 1e9:.3g} GB/s")
