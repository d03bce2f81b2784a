"""Speed-up of a second worker: sampled softmax with 800 negatives for each pair, one thread each, on two cores.

Measured twice: with each worker and its stream confined to one core, so that two workers have twice the cores of one;
and unconfined, where the stream of a single worker already uses the second core.

For comparison, the speed-up of two simultaneous trainings of half of the pairs each, without Ray and without
communication: they share only the caches and the memory bandwidth of the machine. Two workers also exchange rows and
gradients, but each normalises and updates half of the items, where each of these trainings does so with all.
"""

import statistics

from measure.bench import Bench
from measure.independent_trainings import step_ms
from measure.training import Training
from measure.training_rows import training_rows
from report import Row, bar_row, ratios

from cases.sampled_softmax import BATCH, SETTINGS

_LEAST = 1.6


def train(bench: Bench, workers: int, confined: bool) -> Training:
    """Train once, through Ray."""
    settings = [*SETTINGS, "sampling.shared=false", f"train.workers={workers}", "train.threads=1"]
    return bench.train(_name(workers, confined), settings, 3 if bench.quick else 4, thin=True, confine=confined)


def measure(bench: Bench) -> list[Row]:
    """Interleave trainings of one and of two workers."""
    independent = [_independent_ms(bench, 1) / _independent_ms(bench, 2) for _ in range(bench.rounds)]
    compared = [bar_row("2 trainings without communication or Ray: speed-up over 1", independent, "x")]
    steps: list[Row] = []
    for confined in (True, False):
        found: dict[int, list[Training]] = {1: [], 2: []}
        for _ in range(bench.rounds):
            for workers, trainings in found.items():
                trainings.append(train(bench, workers, confined))
        medians = {workers: [statistics.median(t.step_ms) for t in trainings] for workers, trainings in found.items()}
        where = "one core each" if confined else "1 thread each, stream on any core"
        compared.append(
            bar_row(f"2 workers: speed-up over 1, {where}", ratios(medians[1], medians[2]), "x", least=_LEAST)
        )
        for workers, trainings in found.items():
            steps += training_rows(_name(workers, confined), trainings[-1], bench.rates)
    return compared + steps


def _independent_ms(bench: Bench, trainings: int) -> float:
    """Return the milliseconds of a step of simultaneous trainings, among which the pairs of a batch are divided."""
    settings = [*SETTINGS, "sampling.shared=false", f"train.batch_size={BATCH // trainings}"]
    given = bench.with_data(settings, thin=True)
    return bench.undisturbed(lambda: step_ms(given, trainings))


def _name(workers: int, confined: bool) -> str:
    return f"{workers} worker{'s' * (workers > 1)}, {'one core' if confined else '1 thread'} each"
