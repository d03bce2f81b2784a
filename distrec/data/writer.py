"""Writes a prepared folder, whole or not at all."""

import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from distrec.core.errors import UserError
from distrec.data.assemble import Coded, fingerprint
from distrec.data.dataset import FORMAT_VERSION, MANIFEST, DuplicateCounts, Manifest, Part, bucket_file


@contextmanager
def atomic_directory(final: Path) -> Iterator[Path]:
    """A temporary folder beside `final` that takes its name at the end of the block.

    A process that is killed leaves a hidden folder that nobody opens. Of two that write at once the second to finish
    drops its own copy: both wrote the same.
    """
    temporary = final.with_name(f".{final.name}.{os.getpid()}-{secrets.token_hex(4)}")
    try:
        temporary.mkdir(parents=True)
    except OSError as error:
        raise UserError(f"cannot write to {final.parent} (data.cache): {error.strerror}") from None
    try:
        yield temporary
        try:
            temporary.rename(final)
        except OSError:
            if not (final / MANIFEST).exists():
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write(folder: Path, coded: Coded, buckets: int, bad_lines: int, **origin: str | float) -> Manifest:
    """Writes a data set into an empty folder, the manifest last. `origin`: where it is from, for the manifest."""
    parts = {part: coded.part(part) for part in Part}
    user_degrees = np.bincount(parts[Part.TRAIN][0], minlength=len(coded.user_ids))
    item_degrees = np.bincount(parts[Part.TRAIN][1], minlength=len(coded.item_ids))
    for file, ids, degrees in (("users", coded.user_ids, user_degrees), ("items", coded.item_ids, item_degrees)):
        pq.write_table(pa.table({"id": ids, "degree": degrees.astype(np.int64)}), folder / f"{file}.parquet")
    _write_buckets(folder, parts, buckets)
    repeats = coded.duplicates
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        **origin,
        users=len(coded.user_ids),
        items=len(coded.item_ids),
        buckets=buckets,
        train=len(coded.pairs[Part.TRAIN]),
        valid=len(coded.pairs[Part.VALID]),
        test=len(coded.pairs[Part.TEST]),
        duplicates=sum(repeats.values()),
        duplicates_by_part=DuplicateCounts(
            train=repeats[Part.TRAIN], valid=repeats[Part.VALID], test=repeats[Part.TEST]
        ),
        overlap=coded.overlap,
        bad_lines=bad_lines,
        users_without_train=int((user_degrees == 0).sum()),
        items_without_train=int((item_degrees == 0).sum()),
        fingerprint=fingerprint(coded, buckets),
    )
    (folder / MANIFEST).write_text(json.dumps(manifest.model_dump(), indent=2) + "\n")
    return manifest


def _write_buckets(folder: Path, parts: dict[Part, tuple[np.ndarray, np.ndarray]], buckets: int) -> None:
    users = np.concatenate([parts[part][0] for part in Part])
    items = np.concatenate([parts[part][1] for part in Part])
    kinds = np.repeat(np.array(list(Part), np.int8), [len(parts[part][0]) for part in Part])
    bucket = (users % buckets).astype(np.uint16)  # two bytes: numpy sorts them by radix
    order = np.argsort(bucket, kind="stable")  # stable: (part, user, item) stays in order within a bucket
    table = pa.table({"user": users[order], "item": items[order], "part": kinds[order]})
    ends = np.cumsum(np.bincount(bucket, minlength=buckets))
    (folder / "buckets").mkdir()
    for number, (start, end) in enumerate(zip(np.append(0, ends[:-1]), ends, strict=True)):
        pq.write_table(table.slice(start, end - start), bucket_file(folder, number))
