"""What happens to a malformed line: an error that points at it, or a count."""

from pathlib import Path
from typing import Literal

from distrec.core.errors import UserError

_SHOWN = 120  # characters of a bad line in a message: enough to recognise it, short enough for one line


class BadLines:
    """The malformed lines of one file.

    Args:
        path: the file.
        policy: `error` raises at the first bad line, `skip` counts.
        unit: what a number counts: `line` in text, `row` in Parquet.
    """

    def __init__(self, path: Path, policy: Literal["error", "skip"], unit: str = "line") -> None:
        self.path, self.policy, self.unit = path, policy, unit
        self.count = 0

    def report(self, number: int, reason: str, text: str) -> None:
        """Takes note of line `number` (from 1). Raises UserError under the policy `error`."""
        if self.policy == "error":
            raise self.error(number, reason, text, "; data.on_bad_line=skip leaves such lines out")
        self.count += 1

    def error(self, number: int, reason: str, text: str, hint: str = "") -> UserError:
        """The error for a line that cannot be left out either."""
        readable = text.rstrip("\r\n").encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
        if len(readable) > _SHOWN:
            readable = readable[:_SHOWN] + "..."
        return UserError(f"{self.path}, {self.unit} {number}: {reason}: {readable!r}{hint}")
