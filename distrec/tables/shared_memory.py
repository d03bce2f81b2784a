"""Memory that workers of one machine share: what one writes there, the others read, with no socket in between.

Over the loopback device the two exchanges of a step of 41 thousand rows took 17 ms of the cores that compute. Here
each row is written once, into a box of who wants it, and read from there.
"""

import mmap
import os
import secrets
from collections.abc import Callable
from pathlib import Path

import torch

FOLDER = Path("/dev/shm")
_LEAST = 2**20  # bytes of a box

Tell = Callable[[str], list[str]]
"""Gives what every worker of the group said, by rank."""


class Boxes:
    """One box for each worker, of one size, which all of the group have in their memory."""

    def __init__(self, boxes: list[mmap.mmap], rank: int) -> None:
        self._boxes, self._rank = boxes, rank

    @classmethod
    def open(cls, size: int, rank: int, tell: Tell) -> "Boxes | None":
        """Makes them. Every worker calls it; all get None if one cannot: another machine, no such folder, no room.

        The files have no names any more when this returns, so that a worker which is killed leaves nothing behind.
        """
        try:
            name, own = _make(size)
        except OSError:
            name, own = "", None
        names = tell(name)
        boxes = [own if k == rank else _find(name, size) for k, name in enumerate(names)]
        whole = all(box is not None for box in boxes)
        everyone = tell("whole" if whole else "")
        if name:
            (FOLDER / name).unlink()
        return cls(boxes, rank) if all(everyone) else None

    @property
    def size(self) -> int:
        """Of each box, bytes."""
        return len(self._boxes[self._rank])

    def tensor(self, rank: int, offset: int, rows: int, width: int, dtype: torch.dtype) -> torch.Tensor:
        """(rows, width) in the box of a worker, from a byte on."""
        if rows * width == 0:  # frombuffer knows no empty ones
            return torch.empty(rows, width, dtype=dtype)
        return torch.frombuffer(self._boxes[rank], dtype=dtype, count=rows * width, offset=offset).view(rows, width)


def size_for(needed: int) -> int:
    """The size of boxes that hold so many bytes: a power of two, so that they are rarely made anew."""
    return max(_LEAST, 1 << (needed - 1).bit_length()) if needed else _LEAST


def _make(size: int) -> tuple[str, mmap.mmap]:
    """A file of this size that is really there: one that is only promised ends a process when it is written to."""
    name = f"distrec-{secrets.token_hex(16)}"
    file = os.open(FOLDER / name, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        os.posix_fallocate(file, 0, size)
        return name, mmap.mmap(file, size)
    except OSError:
        (FOLDER / name).unlink()
        raise
    finally:
        os.close(file)


def _find(name: str, size: int) -> mmap.mmap | None:
    """The box of another worker, if it is on this machine."""
    if not name:
        return None
    try:
        file = os.open(FOLDER / name, os.O_RDWR)
        try:
            return mmap.mmap(file, size)
        finally:
            os.close(file)
    except OSError:
        return None
