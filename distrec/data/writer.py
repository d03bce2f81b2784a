"""Writer of a prepared folder: complete or absent."""

import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from distrec.core.errors import UserError, reason_of
from distrec.core.file_lock import FileLock
from distrec.data.dataset import FORMAT_VERSION, MANIFEST, Manifest, Part, bucket_file
from distrec.data.encode import EncodedParts, fingerprint


@contextmanager
def atomic_directory(final: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `final` that is renamed to it at the end of the block.

    A killed process leaves a hidden folder that is never opened. If two processes write at once, the second to finish
    discards its copy, which has the same content.
    """
    temporary = final.with_name(f".{final.name}.{os.getpid()}-{secrets.token_hex(4)}")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        try:
            temporary.rename(final)
        except OSError:
            if not (final / MANIFEST).exists():
                raise
    except OSError as error:
        raise _unwritable(final, error) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def exclusive(final: Path, log: Callable[[str], None]) -> Iterator[None]:
    """Let one process at a time run the block for a folder; the others wait, and log for whom."""
    lock = FileLock(final.with_name(f".{final.name}.lock"))
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire_waiting(lambda holder: log(f"data: waiting for {holder}, which prepares the same data"))
    except OSError as error:
        raise _unwritable(final, error) from None
    try:
        yield
    finally:
        lock.release()


def _unwritable(final: Path, error: OSError) -> UserError:
    return UserError(f"cannot write to {final.parent} (data.cache): {reason_of(error)}")


def write(folder: Path, parts: EncodedParts, buckets: int, bad_lines: int, **origin: Any) -> None:
    """Write a data set into an empty folder, the manifest last.

    Args:
        folder: the empty folder.
        parts: the interactions.
        buckets: number of user buckets.
        bad_lines: malformed lines that were skipped.
        origin: manifest fields on the origin of the data: name, source, split, filter and notes.
    """
    pairs = {part: parts.pairs(part) for part in Part}
    untrained: dict[str, Any] = {}
    for entity, ids, column, of in (("users", parts.user_ids, 0, "of"), ("items", parts.item_ids, 1, "with")):
        degrees = np.bincount(pairs[Part.TRAIN][column], minlength=len(ids))
        pq.write_table(pa.table({"id": ids, "degree": degrees.astype(np.int64)}), folder / f"{entity}.parquet")
        untrained[f"{entity}_without_train"] = int((degrees == 0).sum())
        untrained[f"{of}_untrained_{entity}"] = {
            part.name.lower(): int((degrees[pairs[part][column]] == 0).sum()) for part in (Part.VALID, Part.TEST)
        }
    _write_buckets(folder, pairs, buckets)
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        **origin,
        users=len(parts.user_ids),
        items=len(parts.item_ids),
        buckets=buckets,
        **{part.name.lower(): len(keys) for part, keys in parts.keys.items()},
        duplicates=sum(parts.duplicates.values()),
        duplicates_by_part={part.name.lower(): count for part, count in parts.duplicates.items()},
        overlap=parts.overlap,
        bad_lines=bad_lines,
        **untrained,
        id_notes=parts.id_notes,
        fingerprint=fingerprint(parts, buckets),
    )
    (folder / MANIFEST).write_text(json.dumps(manifest.model_dump(), indent=2) + "\n")


def _write_buckets(folder: Path, pairs: dict[Part, tuple[np.ndarray, np.ndarray]], buckets: int) -> None:
    users, items = (np.concatenate(columns) for columns in zip(*pairs.values(), strict=True))
    parts = np.repeat(np.array(list(pairs), np.int8), [len(users) for users, _ in pairs.values()])
    bucket = (users % buckets).astype(np.uint16)  # two bytes, which numpy sorts by radix
    order = np.argsort(bucket, kind="stable")  # stable: (part, user, item) stays sorted within a bucket
    table = pa.table({"user": users[order], "item": items[order], "part": parts[order]})
    ends = np.cumsum(np.bincount(bucket, minlength=buckets))
    (folder / "buckets").mkdir()
    for number, (start, end) in enumerate(zip(np.append(0, ends[:-1]), ends, strict=True)):
        pq.write_table(table.slice(start, end - start), bucket_file(folder, number))
