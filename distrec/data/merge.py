"""Data for a refit: the training and validation part together."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from distrec.data import writer
from distrec.data.config import DataConfig
from distrec.data.dataset import MANIFEST, Dataset, Part
from distrec.data.encode import EncodedParts
from distrec.data.prepare import prepare

Log = Callable[[str], None]


def refit_data(config: DataConfig, dataset: Dataset, log: Log = lambda line: None) -> DataConfig:
    """Prepare the data of a refit; return their configuration, with the same test part and no validation part.

    Where the validation part was held out of the training interactions, it is `valid_fraction=0`; where the source has
    one of its own, or is prepared already, a prepared folder beside the others.
    """
    if dataset.manifest.valid_fraction and not (Path(config.source) / MANIFEST).exists():
        found = config.model_copy(update={"valid_fraction": 0.0})
        prepare(found, log)
        return found
    merged = merge_validation(dataset, config.cache, log)
    return DataConfig(source=str(merged.path.absolute()), cache=config.cache)


def merge_validation(dataset: Dataset, cache: Path, log: Log = lambda line: None) -> Dataset:
    """Prepare a data set again, its validation interactions as training ones, or open it if that has been done."""
    manifest = dataset.manifest
    folder = cache / f"{manifest.name}-{manifest.fingerprint[:12]}-refit"
    with writer.exclusive(folder, log):
        if not (folder / MANIFEST).exists():
            origin = manifest.model_dump(
                include={"name", "source", "split", "test_fraction", "split_seed", "min_user", "min_item", "notes"}
                | {"filtered_users", "filtered_items", "filtered_interactions"}
            )
            with writer.atomic_directory(folder) as temporary:
                parts = _merged(dataset)
                writer.write(temporary, parts, manifest.buckets, manifest.bad_lines, valid_fraction=0.0, **origin)
    return Dataset.open(folder)


def _merged(dataset: Dataset) -> EncodedParts:
    items, buckets, manifest = max(1, dataset.manifest.items), range(dataset.manifest.buckets), dataset.manifest
    keys = {}
    for part in Part:
        users_of, items_of = dataset.interactions(part, buckets)
        keys[part] = users_of.astype(np.int64) * items + items_of
    train = np.sort(np.concatenate([keys[Part.TRAIN], keys[Part.VALID]]))
    merged = {Part.TRAIN: train, Part.VALID: np.empty(0, np.int64), Part.TEST: np.sort(keys[Part.TEST])}
    duplicates = {part: manifest.duplicates_by_part[part.name.lower()] for part in Part}
    return EncodedParts(
        dataset.user_ids(), dataset.item_ids(), merged, duplicates, manifest.overlap, id_notes=manifest.id_notes
    )
