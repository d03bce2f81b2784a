"""The one exception for a user's mistake. The command line prints its message without a traceback."""


class UserError(ValueError):
    """Something the user can put right: a configuration, a file, a command. The message says how."""
