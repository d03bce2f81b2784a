"""Preparation: raw interactions in, a prepared folder out, once for equal files and settings."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b, file_digest
from pathlib import Path
from typing import Any

import pyarrow as pa

from distrec.core.errors import UserError
from distrec.data import planted, source_files, writer
from distrec.data.assemble import carve, code
from distrec.data.config import PLANTED, DataConfig
from distrec.data.dataset import FORMAT_VERSION, MANIFEST, Dataset, Manifest, Part
from distrec.data.readers import formats
from distrec.data.readers.formats import Raw

Log = Callable[[str], None]

_PLANTED_TEST_FRACTION = 0.2  # of the customary 80/20 split: made data brings no test part of its own
_KEY_LENGTH = 12


@dataclass(frozen=True)
class _Job:
    """What is to be prepared: everything but the content of the files."""

    name: str
    source: str
    inputs: dict[str, Any]  # what the content depends on, for the key of the cache
    read: Callable[[], dict[Part, Raw]]
    test_fraction: float  # 0 where the source brings the part
    valid_fraction: float


def prepare(config: DataConfig, log: Log = lambda line: None) -> Dataset:
    """Prepares a data set, or opens it if it has been prepared before.

    Args:
        config: the source, and how to read and split it.
        log: takes short lines about what was done.

    Returns:
        The data set. It may have no test part: `manifest.test` is 0 then.

    Raises:
        UserError: a missing or malformed file, a source without interactions, a damaged prepared folder.
    """
    if config.source != PLANTED and (Path(config.source) / MANIFEST).exists():
        return _open_prepared(config)
    job = _planted_job(config) if config.source == PLANTED else _file_job(config)
    folder = config.cache / f"{job.name}-{_key(job, config)}"
    if (folder / MANIFEST).exists():
        dataset = Dataset.open(folder)
        log(f"data: {job.name} was prepared before: {folder}")
    else:
        started = time.monotonic()
        _build(job, config, folder)
        dataset = Dataset.open(folder)
        log(f"data: {job.name} prepared in {time.monotonic() - started:.1f} s: {folder}")
    for note in _notes(dataset.manifest):
        log(f"data: {note}")
    return dataset


def _open_prepared(config: DataConfig) -> Dataset:
    dataset, default = Dataset.open(Path(config.source)), DataConfig()
    ignored = [
        f"data.{key}"
        for key in ("test", "valid", "test_fraction", "valid_fraction", "split_seed", "buckets")
        if getattr(config, key) not in (getattr(default, key), getattr(dataset.manifest, key, None))
    ]
    if ignored:
        raise UserError(f"{config.source} is prepared already: leave {', '.join(ignored)} out, or give the raw files")
    return dataset


def _planted_job(config: DataConfig) -> _Job:
    made = config.planted

    def read() -> dict[Part, Raw]:
        data = planted.make(made)
        return {Part.TRAIN: Raw(pa.chunked_array([data.users]), pa.chunked_array([data.items]))}

    source = f"made: {made.users} users, {made.items} items, {made.interactions} interactions, seed {made.seed}"
    test_fraction = config.test_fraction or _PLANTED_TEST_FRACTION
    return _Job(PLANTED, source, {"planted": made.model_dump()}, read, test_fraction, config.valid_fraction)


def _file_job(config: DataConfig) -> _Job:
    files = source_files.find(config)
    present = files.present()

    def read() -> dict[Part, Raw]:
        parts = {Part[part.upper()]: formats.read(path, config) for part, path in present}
        if not len(parts[Part.TRAIN].users):
            raise UserError(f"{files.train} holds no interaction")
        return parts

    inputs = {part: {"content": _digest(path), **formats.options_of(path, config)} for part, path in present}
    test_fraction = 0.0 if files.test else config.test_fraction
    valid_fraction = 0.0 if files.valid else config.valid_fraction
    return _Job(files.name, files.describe(config), inputs, read, test_fraction, valid_fraction)


def _build(job: _Job, config: DataConfig, folder: Path) -> None:
    parts = job.read()
    coded = code(parts)
    # Test before validation: the test part then does not depend on how much is used for validation.
    for part, fraction in ((Part.TEST, job.test_fraction), (Part.VALID, job.valid_fraction)):
        if fraction:
            coded = carve(coded, part, fraction, config.split_seed)
    bad_lines = sum(raw.bad_lines for raw in parts.values())
    with writer.atomic_directory(folder) as temporary:
        writer.write(
            temporary,
            coded,
            config.buckets,
            bad_lines,
            name=job.name,
            source=job.source,
            test_fraction=job.test_fraction,
            valid_fraction=job.valid_fraction,
            split_seed=config.split_seed,
        )


def _key(job: _Job, config: DataConfig) -> str:
    """Names the content of the folder: equal files and settings give an equal key."""
    settings = {
        "format_version": FORMAT_VERSION,
        "inputs": job.inputs,
        "test_fraction": job.test_fraction,
        "valid_fraction": job.valid_fraction,
        "split_seed": config.split_seed,
        "buckets": config.buckets,
    }
    return blake2b(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:_KEY_LENGTH]


def _digest(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file_digest(file, blake2b).hexdigest()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None


def _notes(manifest: Manifest) -> list[str]:
    notes = []
    if manifest.bad_lines:
        notes.append(f"{manifest.bad_lines} malformed lines left out")
    if manifest.duplicates:
        notes.append(f"{manifest.duplicates} repeated interactions merged")
    if manifest.overlap:
        notes.append(f"{manifest.overlap} held-out interactions left out, because another part has them")
    return notes
