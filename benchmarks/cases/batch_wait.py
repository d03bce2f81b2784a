"""Share of a training's steps spent waiting for batches: with one negative, and with 64 negatives for each pair."""

from measure.bench import Bench
from measure.training import Training
from measure.training_rows import training_rows
from report import Row, bar_row

from cases import bpr

NAME = "64 a pair"
SETTINGS = ["loss.name=ssm", "sampling.negatives=64", "sampling.shared=false", "sampling.reject=true"]
SETTINGS += ["train.batch_size=2048", "train.workers=1", "train.threads=1"]
_MOST = 0.05


def train(bench: Bench) -> Training:
    """Train once, through Ray."""
    return bench.train(NAME, SETTINGS, 3 if bench.quick else 4)


def measure(bench: Bench) -> list[Row]:
    """Train with one thread each, so that the stream has the other core."""
    one, many = bench.trainings.get(bpr.NAME) or bpr.train(bench), train(bench)
    return [wait_row("1 a pair", one), wait_row(NAME, many), *training_rows(NAME, many, bench.rates)]


def wait_row(name: str, training: Training) -> Row:
    """Return the row of the share of waiting, by epoch."""
    shares = [waited / step for waited, step in zip(training.split_ms["wait"], training.step_ms, strict=True)]
    return bar_row(f"{name}: wait / step", shares, "x", most=_MOST)
