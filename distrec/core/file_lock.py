"""Locks between processes of all machines that share a file system. A lock ends with its process, however that ends.

Windows and file systems without locks (some of clusters) do not keep processes apart.
"""

import contextlib
import errno
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path

try:
    import fcntl
except ImportError:  # on Windows
    fcntl = None  # type: ignore[assignment]

_UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
_POLL_S, _NOTE_S = 0.1, 30.0  # interval of attempts, and of notes about the wait
_NAME_ATTEMPTS = 20


class FileLock:
    """An exclusive lock on a file, which names its holder. Raises OSError where the file cannot be written."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: int | None = None

    def acquire(self) -> bool:
        """Create the file and lock it; return False at once if another process, or another lock of this one, has it."""
        while self._file is None:
            file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                _lock(file)
                if _is_file(file, self.path):  # else its holder has deleted it since it was opened
                    os.ftruncate(file, 0)
                    os.write(file, f"process {os.getpid()} on {socket.gethostname()}".encode())
                    self._file = file
            except BlockingIOError:
                return False
            finally:
                if self._file is None:
                    os.close(file)
        return True

    def acquire_waiting(self, note: Callable[[str], None]) -> None:
        """Lock the file, after waiting for its holder. `note` gets the holder when the wait starts and every 30 s."""
        noted = float("-inf")
        while not self.acquire():
            if time.monotonic() - noted >= _NOTE_S:
                noted = time.monotonic()
                note(self.holder())
            time.sleep(_POLL_S)

    def release(self) -> None:
        """Delete the file and end the lock, if it is held."""
        if self._file is not None:
            self.path.unlink(missing_ok=True)
            os.close(self._file)
            self._file = None

    def holder(self) -> str:
        """Return who has the lock: `process 123 on host`."""
        with contextlib.suppress(OSError):
            for _ in range(_NAME_ATTEMPTS):
                if name := self.path.read_text():
                    return name
                time.sleep(_POLL_S)  # the holder has locked the file and is about to write its name
        return "another process"


def _lock(file: int) -> None:
    """Lock an open file. Raise BlockingIOError if it is locked."""
    try:
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise


def _is_file(file: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except FileNotFoundError:
        return False
