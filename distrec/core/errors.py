"""Exceptions that are not bugs of the package. The command line prints their messages without a traceback."""


class UserError(ValueError):
    """An error that the user can correct in a configuration, a file or a command. The message says how."""


class WorkerLost(RuntimeError):
    """A worker ended during a run: it was killed, ran out of memory, or its machine failed."""

    def __init__(self, message: str, folder: str) -> None:
        """`folder`: the run folder, from which the run can be resumed."""
        super().__init__(message)
        self.folder = folder
