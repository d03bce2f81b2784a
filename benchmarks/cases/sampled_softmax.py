"""Sampled softmax, 800 negatives, batch 1024, for each pair or shared by the batch, beside a plain PyTorch loop.

A step of the loop takes most of a second, so its epoch is extrapolated from a few steps.
"""

import statistics

from measure.bench import Bench
from measure.training import Training
from measure.training_rows import training_rows
from report import Row, bar_row

NAME, SHARED = "softmax", "shared"
BATCH, NEGATIVES = 1024, 800
SETTINGS = ["loss.name=ssm", "model.similarity=cosine", f"sampling.negatives={NEGATIVES}", "sampling.reject=false"]
SETTINGS += [f"train.batch_size={BATCH}"]
ONE_WORKER = ["train.workers=1", "train.threads=2"]
_MOST_OF_PLAIN = 1 / 25
_MOST_S, _PLAIN_S = 4.0, 700.0  # bar on an epoch with shared negatives, where an epoch of the loop takes 700 s


def train(bench: Bench) -> Training:
    """Train once with negatives for each pair, through Ray, on the thin slice: the same steps, shorter epochs."""
    settings = [*SETTINGS, *ONE_WORKER, "sampling.shared=false"]
    return bench.train(NAME, settings, 2 if bench.quick else 3, thin=True)


def train_shared(bench: Bench) -> Training:
    """Train once with negatives shared by the batch, through Ray."""
    return bench.train(SHARED, [*SETTINGS, *ONE_WORKER, "sampling.shared=true"], 4 if bench.quick else 6)


def measure(bench: Bench) -> list[Row]:
    """Interleave steps of the loop and a training."""
    plain: list[float] = []
    ours: list[float] = []
    compared: list[float] = []
    with bench.rival("plain_torch.py", str(BATCH), str(NEGATIVES)) as loop:
        loop.seconds()
        for _ in range(bench.rounds):
            steps = [bench.undisturbed(loop.seconds) * 1e3 for _ in range(2 if bench.quick else 4)]
            training = train(bench)
            plain, ours = plain + steps, ours + training.step_ms
            compared.append(statistics.median(training.step_ms) / statistics.median(steps))
    epoch = bench.data.steps(BATCH) / 1e3
    return [
        bar_row("softmax, 800 a pair: distrec, epoch", [ms * epoch for ms in ours], "s"),
        bar_row("softmax, 800 a pair: plain loop, epoch", [ms * epoch for ms in plain], "s"),
        bar_row("softmax, 800 a pair: distrec / plain loop", compared, "x", most=_MOST_OF_PLAIN),
        *training_rows("softmax, 800 a pair", training, bench.rates),
    ]


def measure_shared(bench: Bench) -> list[Row]:
    """Interleave a step of the loop and a training. The bars are seconds, and their ratio to the loop's seconds."""
    ours: list[float] = []
    compared: list[float] = []
    with bench.rival("plain_torch.py", str(BATCH), str(NEGATIVES)) as loop:
        loop.seconds()
        for _ in range(bench.rounds):
            plain_ms = bench.undisturbed(loop.seconds) * 1e3
            training = train_shared(bench)
            ours += training.step_ms
            compared.append(statistics.median(training.step_ms) / plain_ms)
    epoch = bench.data.steps(BATCH) / 1e3
    return [
        bar_row("softmax, 800 shared: distrec, epoch", [ms * epoch for ms in ours], "s", most=_MOST_S),
        bar_row("softmax, 800 shared: distrec / plain loop", compared, "x", most=_MOST_S / _PLAIN_S),
        *training_rows("softmax, 800 shared", training, bench.rates),
    ]
