"""The exceptions that are no fault of ours. The command line prints their messages without a traceback."""


class UserError(ValueError):
    """Something the user can put right: a configuration, a file, a command. The message says how."""


class WorkerLost(RuntimeError):
    """A worker ended in the middle of a run: it was killed, or ran out of memory, or its machine went."""

    def __init__(self, message: str, folder: str) -> None:
        """`folder`: the run folder, from which the run can go on."""
        super().__init__(message)
        self.folder = folder
