"""What a second worker buys: sampled softmax with 800 negatives a pair, one thread each, on two cores.

Twice: each worker and its stream confined to one core, so that two workers have twice the cores of one; and free, where
a single worker's stream draws on the second core while its one thread computes, so that both cores work either way.

Beside it what the cores give when nobody waits: two trainings of half of the pairs each, at once, that share nothing
but the machine's caches and memory, without Ray. Two workers also exchange rows and gradients, but normalise and update
half of the items each, where each of these does so with all.
"""

import statistics

from measure.apart import step_ms
from measure.bench import Bench
from measure.job import Job
from measure.rows import job_rows
from report import Row, bar_row, ratios

from cases.softmax import BATCH, WORDS

_LEAST = 1.6


def train(bench: Bench, workers: int, confined: bool) -> Job:
    """Once, through Ray."""
    words = [*WORDS, "sampling.shared=false", f"train.workers={workers}", "train.threads=1"]
    return bench.train(_name(workers, confined), words, 3 if bench.quick else 4, thin=True, confine=confined)


def _apart(bench: Bench, at_once: int) -> float:
    """Milliseconds of a step in each of so many trainings that share the pairs of a step, and exchange nothing."""
    words = bench.words_on_data([*WORDS, "sampling.shared=false", f"train.batch_size={BATCH // at_once}"], thin=True)
    return bench.undisturbed(lambda: step_ms(words, at_once))


def _name(workers: int, confined: bool) -> str:
    return f"{workers} worker{'s' * (workers > 1)}, {'one core' if confined else '1 thread'} each"


def measure(bench: Bench) -> list[Row]:
    """One worker, two workers, in turn."""
    apart = [_apart(bench, 1) / _apart(bench, 2) for _ in range(bench.rounds)]
    compared = [bar_row("2 trainings that exchange nothing: speed-up over 1, without Ray", apart, "x")]
    steps: list[Row] = []
    for confined in (True, False):
        found: dict[int, list[Job]] = {1: [], 2: []}
        for _ in range(bench.rounds):
            for workers, jobs in found.items():
                jobs.append(train(bench, workers, confined))
        medians = {workers: [statistics.median(job.step_ms) for job in jobs] for workers, jobs in found.items()}
        where = "one core each" if confined else "1 thread each, stream on any core"
        compared.append(
            bar_row(f"2 workers: speed-up over 1, {where}", ratios(medians[1], medians[2]), "x", least=_LEAST)
        )
        for workers, jobs in found.items():
            steps += job_rows(_name(workers, confined), jobs[-1], bench.rates)
    return compared + steps
