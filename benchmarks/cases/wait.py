"""Whether a training ever waits for its batches: with one negative a pair, and with 64 of each pair's own."""

from measure.bench import Bench
from measure.job import Job
from measure.rows import job_rows
from report import Row, bar_row

from cases import bpr

NAME = "64 a pair"
WORDS = ["loss.name=ssm", "sampling.negatives=64", "sampling.shared=false", "sampling.reject=true"]
WORDS += ["train.batch_size=2048", "train.workers=1", "train.threads=1"]
_MOST = 0.05


def train(bench: Bench) -> Job:
    """Once, through Ray."""
    return bench.train(NAME, WORDS, 3 if bench.quick else 4)


def measure(bench: Bench) -> list[Row]:
    """One thread each, so that the stream has the other core."""
    one, many = bench.jobs.get(bpr.NAME) or bpr.train(bench), train(bench)
    return [wait_row("1 a pair", one), wait_row(NAME, many), *job_rows(NAME, many, bench.rates)]


def wait_row(name: str, job: Job) -> Row:
    """The share of its steps that a training spent waiting, epoch by epoch."""
    shares = [wait / step for wait, step in zip(job.split_ms["wait"], job.step_ms, strict=True)]
    return bar_row(f"{name}: wait / step", shares, "x", most=_MOST)
