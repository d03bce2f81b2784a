"""Shared memory between the workers of one machine: each worker writes rows directly into the buffers of the others.

Through the loopback device the two exchanges of a step of 41 thousand rows took 17 ms of the cores that compute. Here
each row is written once, into the buffer of the worker that requested it, and read from there.
"""

import mmap
import os
import secrets
import time
import weakref
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

FOLDER = Path("/dev/shm")
_MIN_BYTES = 2**20  # of a buffer
_COUNTER_BYTES = 64  # after a buffer: a cache line for the number of barriers at which its owner has arrived
_POLL_FRACTION, _POLL_S = 1 / 16, (5e-5, 1e-3)  # poll interval as a fraction of the time waited, and its bounds
_LIVENESS_S, _TIMEOUT_S = 1.0, 1800.0  # interval of the checks that all owners are alive; timeout, the same as gloo's

AllGatherStr = Callable[[str], list[str]]
"""Gathers a string from every worker of the group, by rank."""


class _SharedBuffer:
    """Memory of one worker that others can write to. Its owner holds a lock on the file for as long as it lives."""

    def __init__(self, name: str, size: int, create: bool = False) -> None:
        """Map the buffer of that name, which is unmapped and closed with this object.

        Args:
            name: name of a file in `FOLDER`.
            size: bytes.
            create: create and lock the file, with allocated space: writing to one without ends the process (SIGBUS).

        Raises:
            OSError: the file is on another machine, or the folder or the space does not exist.
        """
        self.size = size
        self._file = os.open(FOLDER / name, os.O_RDWR | (os.O_CREAT | os.O_EXCL if create else 0), 0o600)
        weakref.finalize(self, os.close, self._file)
        if create:
            import fcntl  # here: not available on Windows

            os.posix_fallocate(self._file, 0, size + _COUNTER_BYTES)
            fcntl.flock(self._file, fcntl.LOCK_EX)
        self.memory = mmap.mmap(self._file, size + _COUNTER_BYTES)
        self.counter_1 = np.frombuffer(self.memory, np.int64, 1, size)

    def is_abandoned(self) -> bool:
        """Return whether the owner has ended or closed its buffer. Not to be called by the owner."""
        import fcntl

        try:
            fcntl.flock(self._file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


class SharedBuffers:
    """One buffer for each worker, of equal size, mapped by all workers of the group, with a barrier."""

    def __init__(self, buffers: list[_SharedBuffer], rank: int) -> None:
        self._buffers, self._rank, self._barriers = buffers, rank, 0

    @classmethod
    def open(cls, size: int, rank: int, all_gather_str: AllGatherStr) -> "SharedBuffers | None":
        """Create and map the buffers. A collective call.

        Returns None at all workers if any cannot map one: on another machine, without the folder, or without space. The
        files are unlinked before this returns, so that a worker that is killed leaves none behind.
        """
        try:
            name, own = _create(size)
        except OSError:
            name, own = "", None
        names = all_gather_str(name)
        found = [own if k == rank else _map(name, size) for k, name in enumerate(names)]
        buffers = [buffer for buffer in found if buffer is not None]
        complete = all_gather_str("complete" if len(buffers) == len(names) else "")
        if name:
            (FOLDER / name).unlink()
        return cls(buffers, rank) if all(complete) else None

    @property
    def size(self) -> int:
        """Size of each buffer, bytes."""
        return self._buffers[self._rank].size

    def tensor(self, rank: int, offset: int, rows: int, width: int, dtype: torch.dtype) -> Tensor:
        """Return a (rows, width) view of the buffer of a worker, from byte `offset`."""
        if rows * width == 0:  # frombuffer rejects empty ones
            return torch.empty(rows, width, dtype=dtype)
        memory = self._buffers[rank].memory
        return torch.frombuffer(memory, dtype=dtype, count=rows * width, offset=offset).view(rows, width)

    def barrier_arrive(self) -> None:
        """Arrive at the next barrier: publish all that this worker has written into the buffers of the others."""
        from distrec.kernels.numba.atomics import publish  # here: importing numba takes 0.3 s

        self._barriers += 1
        publish(self._buffers[self._rank].counter_1, self._barriers)

    def barrier_wait(self) -> None:
        """Wait until all workers have arrived at this barrier. What they wrote before can then be read.

        Polls, because a wake-up by message took 2 ms where all cores compute, twice a step.

        Raises:
            ConnectionError: a worker has ended.
            TimeoutError: a worker did not arrive in time.
        """
        from distrec.kernels.numba.atomics import reached

        started, next_check = time.perf_counter(), _LIVENESS_S
        for rank, buffer in enumerate(self._buffers):
            while not reached(buffer.counter_1, self._barriers):
                waited = time.perf_counter() - started
                time.sleep(0 if waited < _POLL_S[0] else min(max(_POLL_S[0], waited * _POLL_FRACTION), _POLL_S[1]))
                if waited > next_check:
                    next_check += _LIVENESS_S
                    # Checked once more, because the worker may have arrived just before it ended.
                    if buffer.is_abandoned() and not reached(buffer.counter_1, self._barriers):
                        raise ConnectionError(f"worker {rank} has ended")
                    if waited > _TIMEOUT_S:
                        raise TimeoutError(f"worker {rank} did not arrive within {_TIMEOUT_S:.0f} s")


def size_for(needed: int) -> int:
    """Return the size of buffers for `needed` bytes: a power of two, so that they are rarely enlarged."""
    return max(_MIN_BYTES, 1 << (needed - 1).bit_length()) if needed else _MIN_BYTES


def _create(size: int) -> tuple[str, _SharedBuffer]:
    """Return (name, buffer) of this worker, which others can map until the file is unlinked."""
    name = f"distrec-{secrets.token_hex(16)}"
    try:
        return name, _SharedBuffer(name, size, create=True)
    except OSError:
        (FOLDER / name).unlink(missing_ok=True)
        raise


def _map(name: str, size: int) -> _SharedBuffer | None:
    """Return the buffer of another worker if it has one on this machine."""
    try:
        return _SharedBuffer(name, size) if name else None
    except OSError:
        return None
