"""Preparation: raw interactions to a prepared folder, cached by the content of the files and the settings."""

import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from hashlib import blake2b, file_digest
from pathlib import Path
from typing import Any

import pyarrow as pa

from distrec.core.errors import UserError
from distrec.core.status import stage
from distrec.data import planted, source_files, writer
from distrec.data.config import PLANTED, DataConfig
from distrec.data.dataset import FORMAT_VERSION, MANIFEST, Dataset, Manifest, Part
from distrec.data.encode import encode_parts, hold_out_parts, k_core
from distrec.data.readers import formats
from distrec.data.readers.formats import RawPairs
from distrec.data.source_files import SourceFiles

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
    names: Mapping[Part, str]  # of the parts that the source has, for messages
    held_out: Mapping[Part, float]  # parts to hold out, the test part first, and the share of each
    remarks: tuple[str, ...] = ()  # on what was given and is not used


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
    done = "was prepared before"
    if not (folder / MANIFEST).exists():
        with writer.exclusive(folder, log):
            if not (folder / MANIFEST).exists():  # else another process prepared it during the wait
                started = time.monotonic()
                _build(source, config, folder)
                done = f"prepared in {time.monotonic() - started:.1f} s"
    dataset = Dataset.open(folder)
    log(f"data: {source.name} {done}: {folder}")
    for note in (*source.remarks, *_notes(dataset.manifest)):
        log(f"data: {note}")
    return dataset


def _open_prepared(config: DataConfig) -> Dataset:
    dataset, default = Dataset.open(Path(config.source)), DataConfig()
    ignored = [
        f"data.{key}"
        for key in DataConfig.model_fields.keys() - {"source", "cache", "planted"}
        if getattr(config, key) not in (getattr(default, key), getattr(dataset.manifest, key, None))
    ]
    if ignored:
        names = ", ".join(sorted(ignored))
        raise UserError(f"{config.source} is prepared already: leave {names} out, or give the raw files")
    return dataset


def _planted_source(config: DataConfig) -> _Source:
    options = config.planted

    def read() -> dict[Part, RawPairs]:
        stage("data: drawing interactions")
        data = planted.make(options)
        return {Part.TRAIN: RawPairs(pa.chunked_array([data.users]), pa.chunked_array([data.items]))}

    description = (
        f"synthetic: {options.users} users, {options.items} items, {options.interactions} interactions, "
        f"seed {options.seed}"
    )
    inputs = {"planted": options.model_dump()}
    test_fraction = config.test_fraction or _PLANTED_TEST_FRACTION
    held_out = _held_out(config.model_copy(update={"test_fraction": test_fraction}))
    return _Source(PLANTED, description, inputs, read, {Part.TRAIN: PLANTED}, held_out)


def _file_source(config: DataConfig) -> _Source:
    files = source_files.find(config)
    held_out = _held_out(config, *files.parts)
    if config.split != "random" and not held_out:
        raise UserError(f"data.split={config.split} does nothing: {files.name} has its parts already; leave it out")
    timeless = config.model_copy(update={"time_column": None})  # only training interactions are split
    options = {part: config if part == Part.TRAIN and held_out else timeless for part in files.parts}

    def read() -> dict[Part, RawPairs]:
        parts = {part: formats.read(found, options[part]) for part, found in files.parts.items()}
        if not len(parts[Part.TRAIN].users):
            raise UserError(f"{files.parts[Part.TRAIN].path} holds no interaction")
        return parts

    inputs = {
        part.name.lower(): {"content": [_digest(file) for file in found.files], **found.options(options[part])}
        for part, found in files.parts.items()
    }
    names = {part: found.path.name for part, found in files.parts.items()}
    return _Source(files.name, files.describe(), inputs, read, names, held_out, tuple(_remarks(config, files)))


def _remarks(config: DataConfig, files: SourceFiles) -> Iterator[str]:
    """Yield a line on files of the source that are not read, and on shares of parts that have a file."""
    if files.unread:
        more = f" and {len(files.unread) - 5} more" if len(files.unread) > 5 else ""
        yield f"not read, as no part has such a name: {', '.join(files.unread[:5])}{more}"
    for part in files.parts.keys() - {Part.TRAIN}:
        key = f"{part.name.lower()}_fraction"
        if getattr(config, key) != getattr(DataConfig(), key):
            yield f"data.{key} does nothing: the {part.name.lower()} part is {files.parts[part].path}"


def _held_out(config: DataConfig, *present: Part) -> dict[Part, float]:
    """Return the parts to hold out and the share of each; 0 where it is one interaction of each user.

    Test before validation, so that the test part does not depend on the validation part.
    """
    if config.split in ("leave_one_out", "leave_last"):
        wanted = {Part.TEST: 0.0} | ({Part.VALID: 0.0} if config.valid_fraction else {})
    else:
        shares = {Part.TEST: config.test_fraction, Part.VALID: config.valid_fraction}
        wanted = {part: share for part, share in shares.items() if share}
    return {part: share for part, share in wanted.items() if part not in present}


def _build(source: _Source, config: DataConfig, folder: Path) -> None:
    raw = source.read()
    rows = f"{sum(len(pairs.users) for pairs in raw.values()):,} interactions"
    stage(f"data: encoding the ids of {rows}")
    parts = everything = encode_parts(raw, source.names)
    if config.min_user > 1 or config.min_item > 1:
        parts = k_core(parts, config.min_user, config.min_item)
    filtered = (
        len(everything.user_ids) - len(parts.user_ids),
        len(everything.item_ids) - len(parts.item_ids),
        sum(len(everything.keys[part]) - len(parts.keys[part]) for part in Part),
    )
    parts = hold_out_parts(parts, source.held_out, config.split, config.split_seed)
    stage(f"data: writing {rows}")
    with writer.atomic_directory(folder) as temporary:
        writer.write(
            temporary,
            parts,
            config.buckets,
            sum(pairs.bad_lines for pairs in raw.values()),
            name=source.name,
            source=source.description,
            split=config.split,
            test_fraction=source.held_out.get(Part.TEST, 0.0),
            valid_fraction=source.held_out.get(Part.VALID, 0.0),
            split_seed=config.split_seed,
            min_user=config.min_user,
            min_item=config.min_item,
            **dict(zip(("filtered_users", "filtered_items", "filtered_interactions"), filtered, strict=True)),
            notes=tuple(note for pairs in raw.values() for note in pairs.notes),
        )


def _key(source: _Source, config: DataConfig) -> str:
    """Return a hash that names the prepared folder: equal files and settings have equal keys."""
    settings = {
        "format_version": FORMAT_VERSION,
        "inputs": source.inputs,
        "split": config.split,
        "held_out": {part.name: share for part, share in source.held_out.items()},
        "split_seed": config.split_seed,
        "min_user": config.min_user,
        "min_item": config.min_item,
        "buckets": config.buckets,
    }
    return blake2b(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:_KEY_LENGTH]


def _digest(path: Path) -> str:
    stage(f"data: hashing {path.name}")
    try:
        with path.open("rb") as file:
            return file_digest(file, blake2b).hexdigest()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None


def _notes(manifest: Manifest) -> list[str]:
    m = manifest
    counts = {
        "malformed lines left out": m.bad_lines,
        "repeated interactions merged": m.duplicates,
        "held-out interactions left out, because another part has them": m.overlap,
    }
    merged = [f"{count:,} {text}" for text, count in counts.items() if count]
    return [*m.notes, *m.id_notes, *merged, *m.filtered(), *m.untrained()]
