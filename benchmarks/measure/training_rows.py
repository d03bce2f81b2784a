"""The rows of every training: duration of a step by part, and its roofline lower bound."""

import statistics

from report import Row, bar_row

from distrec.data.prepare import prepare
from distrec.sampling.source import BatchSource
from measure.roofline import Rates, bound_rows, step_work
from measure.training import Training


def training_rows(name: str, training: Training, rates: Rates) -> list[Row]:
    """Return the rows of a step, its parts, and its lower bound."""
    config, sampling = training.config, training.config.effective_sampling
    source = BatchSource(
        prepare(config.data), sampling, config.run.seed, config.train.batch_size, 0, 1, config.batch_needs
    )
    work = step_work(source.batch(0, 0), config.sampling.negatives, config.model.dim)
    seconds = statistics.median(training.step_ms) / 1e3
    return split_rows(name, training) + bound_rows(f"{name}: step", work, seconds, rates)


def split_rows(name: str, training: Training) -> list[Row]:
    """Return the rows of a step and of its parts."""
    rows = [bar_row(f"{name}: step", training.step_ms, "ms")]
    return rows + [bar_row(f"{name}:   {part}", values, "ms") for part, values in training.split_ms.items()]
