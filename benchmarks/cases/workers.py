"""What a second worker buys: sampled softmax with 800 negatives a pair, one thread each, on two cores.

The stream of each worker works beside it, so that with two workers the cores have four processes to serve.
"""

import statistics

from measure.bench import Bench
from measure.job import Job
from measure.rows import job_rows
from report import Row, bar_row, ratios

from cases.softmax import WORDS

NAMES = {1: "1 worker, 1 thread", 2: "2 workers, 1 thread each"}
_LEAST = 1.6


def train(bench: Bench, workers: int) -> Job:
    """Once, through Ray."""
    words = [*WORDS, "sampling.shared=false", f"train.workers={workers}", "train.threads=1"]
    return bench.train(NAMES[workers], words, 2 if bench.quick else 3, thin=True)


def measure(bench: Bench) -> list[Row]:
    """One worker, two workers, in turn."""
    found: dict[int, list[Job]] = {1: [], 2: []}
    for _ in range(bench.rounds):
        for workers, jobs in found.items():
            jobs.append(train(bench, workers))
    medians = {workers: [statistics.median(job.step_ms) for job in jobs] for workers, jobs in found.items()}
    rows = [bar_row("2 workers: speed-up over 1", ratios(medians[1], medians[2]), "x", least=_LEAST)]
    for workers, jobs in found.items():
        rows += job_rows(NAMES[workers], jobs[-1], bench.rates)
    return rows
