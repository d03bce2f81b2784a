"""The rows that every training gets: where a step's time goes, and how far it is from the floor."""

import statistics

from report import Row, bar_row

from distrec.data.prepare import prepare
from distrec.sampling.source import BatchSource
from measure.floor import Rates, floor_rows, step_floor
from measure.job import Job


def job_rows(name: str, job: Job, rates: Rates) -> list[Row]:
    """A step by part, and its floor."""
    rows = [bar_row(f"{name}: step", job.step_ms, "ms")]
    rows += [bar_row(f"{name}:   {part}", values, "ms") for part, values in job.split_ms.items()]
    config = job.config
    source = BatchSource(
        prepare(config.data), config.drawn, config.run.seed, config.train.batch_size, 0, 1, config.loss.log_q
    )
    floor = step_floor(source.batch(0, 0), config.sampling.negatives, config.model.dim)
    return rows + floor_rows(f"{name}: step", floor, statistics.median(job.step_ms) / 1e3, rates)
