"""Checks of the prepared data against the configuration, before any worker starts."""

from pathlib import Path

import numpy as np

from distrec.core.errors import UserError
from distrec.data.config import DataConfig
from distrec.data.dataset import MANIFEST, Dataset, Part
from distrec.training.config import Config


def check_workers(config: Config) -> None:
    """Raise UserError if raw data will be prepared into fewer buckets than there are workers."""
    if not (Path(config.data.source) / MANIFEST).exists():  # prepared data have a number of buckets of their own
        _check_buckets(config.train.workers, config.data.buckets)


def check_evaluation(config: Config) -> None:
    """Raise UserError for an option that only `distrec evaluate` has."""
    if config.eval.per_user is not None:
        raise UserError(
            "eval.per_user is an option of distrec evaluate; training writes the metrics of each user on the test part "
            "to test_users.parquet in the run folder"
        )


def check_dataset(config: Config, dataset: Dataset) -> None:
    """Raise UserError if the data cannot be trained or evaluated on as configured."""
    manifest, source = dataset.manifest, config.data.source
    if not manifest.test:
        raise UserError(f"{source} has no test part: {_why_no_test(config.data, dataset)}")
    if config.watched and not manifest.valid:
        raise UserError("train.watch and train.patience need a validation part: set data.valid_fraction, or data.valid")
    if not manifest.train:
        raise UserError(f"{source} has no training interactions")
    _check_buckets(config.train.workers, manifest.buckets)
    for part in (Part.VALID, Part.TEST):
        if manifest.count(part) and not _any_rankable(dataset, part):
            reason = next(iter(manifest.id_notes), "check how the data were split")
            raise UserError(
                f"{source}: no user has both training interactions and a {part.name.lower()} part; {reason}"
            )


def _check_buckets(workers: int, buckets: int) -> None:
    if workers > buckets:
        raise UserError(
            f"train.workers={workers} is more than the data's {buckets} buckets: a worker would own no rows; "
            "use fewer workers, or prepare with more data.buckets"
        )


def _why_no_test(config: DataConfig, dataset: Dataset) -> str:
    if dataset.manifest.overlap:
        return f"all of its interactions ({dataset.manifest.overlap:,}) are training interactions too"
    if config.split in ("leave_one_out", "leave_last"):
        return f"data.split={config.split} held nothing out; every user has one interaction"
    if config.test_fraction:
        return f"data.test_fraction={config.test_fraction:g} held nothing out; users have too few interactions"
    return "hold out a share of each user's interactions with data.test_fraction=0.2, or name a file in data.test"


def _any_rankable(dataset: Dataset, part: Part) -> bool:
    """Return whether any user has interactions both in the training part and in `part`; reads buckets until one has."""
    return any(
        np.isin(dataset.interactions(part, [bucket])[0], dataset.interactions(Part.TRAIN, [bucket])[0]).any()
        for bucket in range(dataset.manifest.buckets)
    )
