"""Sampled softmax with 800 negatives, batch 1024, per pair and shared by the batch, beside the plain PyTorch loop.

The loop takes the better part of a second a step, so that some steps of it stand for its epoch.
"""

import statistics

from measure.bench import Bench
from measure.job import Job
from measure.rows import job_rows
from report import Row, bar_row

NAME, SHARED = "softmax", "shared"
BATCH, NEGATIVES = 1024, 800
WORDS = ["loss.name=ssm", "model.similarity=cosine", f"sampling.negatives={NEGATIVES}", "sampling.reject=false"]
WORDS += [f"train.batch_size={BATCH}"]
ALONE = ["train.workers=1", "train.threads=2"]
_MOST_OF_PLAIN = 1 / 25
_MOST_S, _PLAIN_S = 4.0, 700.0  # of an epoch with shared negatives, on a machine where the loop takes so long


def train(bench: Bench) -> Job:
    """Negatives of each pair's own, once, through Ray. On the thin slice: steps are the same there, epochs short."""
    return bench.train(NAME, [*WORDS, *ALONE, "sampling.shared=false"], 2 if bench.quick else 3, thin=True)


def train_shared(bench: Bench) -> Job:
    """Negatives shared by the batch, once, through Ray."""
    words = [*WORDS, *ALONE, "sampling.shared=true"]
    return bench.train(SHARED, words, 4 if bench.quick else 6)


def measure(bench: Bench) -> list[Row]:
    """Takes turns: steps of the loop, a training of ours."""
    plain: list[float] = []
    ours: list[float] = []
    compared: list[float] = []
    with bench.rival("plain_torch.py", str(BATCH), str(NEGATIVES)) as loop:
        loop.seconds()
        for _ in range(bench.rounds):
            steps = [bench.undisturbed(loop.seconds) * 1e3 for _ in range(2 if bench.quick else 4)]
            job = train(bench)
            plain, ours = plain + steps, ours + job.step_ms
            compared.append(statistics.median(job.step_ms) / statistics.median(steps))
    an_epoch = bench.data.steps(BATCH) / 1e3
    return [
        bar_row("softmax, 800 a pair: distrec, epoch", [ms * an_epoch for ms in ours], "s"),
        bar_row("softmax, 800 a pair: plain loop, epoch", [ms * an_epoch for ms in plain], "s"),
        bar_row("softmax, 800 a pair: distrec / plain loop", compared, "x", most=_MOST_OF_PLAIN),
        *job_rows("softmax, 800 a pair", job, bench.rates),
    ]


def measure_shared(bench: Bench) -> list[Row]:
    """Held to seconds, and to the same part of the loop's, which are what the seconds mean on this machine."""
    ours: list[float] = []
    compared: list[float] = []
    with bench.rival("plain_torch.py", str(BATCH), str(NEGATIVES)) as loop:
        loop.seconds()
        for _ in range(bench.rounds):
            plain_ms = bench.undisturbed(loop.seconds) * 1e3
            job = train_shared(bench)
            ours += job.step_ms
            compared.append(statistics.median(job.step_ms) / plain_ms)
    an_epoch = bench.data.steps(BATCH) / 1e3
    return [
        bar_row("softmax, 800 shared: distrec, epoch", [ms * an_epoch for ms in ours], "s", most=_MOST_S),
        bar_row("softmax, 800 shared: distrec / plain loop", compared, "x", most=_MOST_S / _PLAIN_S),
        *job_rows("softmax, 800 shared", job, bench.rates),
    ]
