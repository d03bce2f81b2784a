"""Files that appear complete or not at all."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from distrec.core.errors import UserError, reason_of


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield the path of a partial file, which takes the place of `path` at the end of the block.

    After an exception, and in a process that is killed, `path` is as it was. Raises OSError.
    """
    partial = path.with_name(f"{path.name}.partial")
    try:
        yield partial
        partial.rename(path)
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> Path:
    """Write a whole file, and return its path. Raises UserError."""
    try:
        with atomic_file(path) as partial:
            partial.write_text(text)
    except OSError as error:
        raise UserError(f"cannot write {path}: {reason_of(error)}") from None
    return path
