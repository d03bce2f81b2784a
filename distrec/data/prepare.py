"""Preparation: raw interactions to a prepared folder, cached by the content of the files and the settings."""

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
from distrec.data.config import PLANTED, DataConfig
from distrec.data.dataset import FORMAT_VERSION, MANIFEST, Dataset, Part
from distrec.data.encode import encode_parts, hold_out_part
from distrec.data.readers import formats
from distrec.data.readers.formats import RawPairs

Log = Callable[[str], None]

_PLANTED_TEST_FRACTION = 0.2  # the customary 80/20 split: planted data has no test part
_KEY_LENGTH = 12


@dataclass(frozen=True)
class _Source:
    """Raw data to prepare, not read yet."""

    name: str
    description: str
    inputs: dict[str, Any]  # everything that determines what `read` returns, for the key of the cache
    read: Callable[[], dict[Part, RawPairs]]
    test_fraction: float  # 0 if the source has the part
    valid_fraction: float


def prepare(config: DataConfig, log: Log = lambda line: None) -> Dataset:
    """Prepare a data set, or open it if it has been prepared before.

    Args:
        config: the source, and how to read and split it.
        log: called with short lines about what was done.

    Returns:
        The data set. `manifest.test` is 0 if it has no test part.

    Raises:
        UserError: a missing or malformed file, a source without interactions, a damaged prepared folder.
    """
    if config.source != PLANTED and (Path(config.source) / MANIFEST).exists():
        return _open_prepared(config)
    source = _planted_source(config) if config.source == PLANTED else _file_source(config)
    folder = config.cache / f"{source.name}-{_key(source, config)}"
    if (folder / MANIFEST).exists():
        dataset = Dataset.open(folder)
        log(f"data: {source.name} was prepared before: {folder}")
    else:
        started = time.monotonic()
        _build(source, config, folder)
        dataset = Dataset.open(folder)
        log(f"data: {source.name} prepared in {time.monotonic() - started:.1f} s: {folder}")
    manifest = dataset.manifest
    for count, text in (
        (manifest.bad_lines, "malformed lines left out"),
        (manifest.duplicates, "repeated interactions merged"),
        (manifest.overlap, "held-out interactions left out, because another part has them"),
    ):
        if count:
            log(f"data: {count} {text}")
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


def _planted_source(config: DataConfig) -> _Source:
    options = config.planted

    def read() -> dict[Part, RawPairs]:
        data = planted.make(options)
        return {Part.TRAIN: RawPairs(pa.chunked_array([data.users]), pa.chunked_array([data.items]))}

    description = (
        f"synthetic: {options.users} users, {options.items} items, {options.interactions} interactions, "
        f"seed {options.seed}"
    )
    test_fraction = config.test_fraction or _PLANTED_TEST_FRACTION
    return _Source(PLANTED, description, {"planted": options.model_dump()}, read, test_fraction, config.valid_fraction)


def _file_source(config: DataConfig) -> _Source:
    files = source_files.find(config)

    def read() -> dict[Part, RawPairs]:
        parts = {part: formats.read(path, config) for part, path in files.paths.items()}
        if not len(parts[Part.TRAIN].users):
            raise UserError(f"{files.paths[Part.TRAIN]} holds no interaction")
        return parts

    inputs = {
        part.name.lower(): {"content": _digest(path), **formats.options_of(path, config)}
        for part, path in files.paths.items()
    }
    test_fraction = 0.0 if Part.TEST in files.paths else config.test_fraction
    valid_fraction = 0.0 if Part.VALID in files.paths else config.valid_fraction
    return _Source(files.name, files.describe(config), inputs, read, test_fraction, valid_fraction)


def _build(source: _Source, config: DataConfig, folder: Path) -> None:
    raw = source.read()
    parts = encode_parts(raw)
    # Test before validation, so that the test part does not depend on the validation fraction.
    for part, fraction in ((Part.TEST, source.test_fraction), (Part.VALID, source.valid_fraction)):
        if fraction:
            parts = hold_out_part(parts, part, fraction, config.split_seed)
    with writer.atomic_directory(folder) as temporary:
        bad_lines, origin = sum(pairs.bad_lines for pairs in raw.values()), _split(source, config)
        origin |= {"name": source.name, "source": source.description}
        writer.write(temporary, parts, config.buckets, bad_lines, **origin)


def _split(source: _Source, config: DataConfig) -> dict[str, Any]:
    """Return the fields of the manifest that describe the split."""
    fractions = {"test_fraction": source.test_fraction, "valid_fraction": source.valid_fraction}
    return fractions | {"split_seed": config.split_seed}


def _key(source: _Source, config: DataConfig) -> str:
    """Return a hash that names the prepared folder: equal files and settings have equal keys."""
    settings = {"format_version": FORMAT_VERSION, "inputs": source.inputs, "buckets": config.buckets}
    settings |= _split(source, config)
    return blake2b(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:_KEY_LENGTH]


def _digest(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file_digest(file, blake2b).hexdigest()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
