"""Exceptions that are not bugs of the package. The command line prints their messages without a traceback."""

import errno
import os

UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES)
"""Error numbers of a disk that is full, or of a file that may not be written."""


def reason_of(error: Exception) -> str:
    """Return why an operation on a file failed, in one line: the text of pyarrow's and torch's errors is longer."""
    number = getattr(error, "errno", None)
    return os.strerror(number) if number else str(error).strip().split("\n")[0]


class UserError(ValueError):
    """An error that the user can correct in a configuration, a file or a command. The message says how."""


class Diverged(UserError):
    """A training whose loss is no longer finite."""


class WorkerLost(RuntimeError):
    """A worker ended during a run: it was killed, ran out of memory, or its machine failed."""

    def __init__(self, message: str, folder: str) -> None:
        """`folder`: the run folder, from which the run can be resumed."""
        super().__init__(message)
        self.folder = folder
