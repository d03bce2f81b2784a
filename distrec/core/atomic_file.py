"""Files that appear complete or not at all."""

import contextlib
from collections.abc import Iterator
from pathlib import Path


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
