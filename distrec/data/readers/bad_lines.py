"""Policy for malformed lines: raise an error that names the line, or count it."""

from pathlib import Path
from typing import Literal

from distrec.core.errors import UserError

_SHOWN = 120  # characters of a bad line in a message: enough to recognise it, short enough for one line


class BadLines:
    """Malformed lines of one file, and its records of several lines.

    Args:
        path: the file.
        policy: `error` raises at the first bad line, `skip` counts.
        noun: `line` in text files, `row` in Parquet files.

    Attributes:
        count: malformed lines.
        spanning: valid records of several lines, because quotes enclose line ends.
        first_spanning: line number of the first such record, from 1.
    """

    def __init__(self, path: Path, policy: Literal["error", "skip"], noun: str = "line") -> None:
        self.path, self.policy, self.noun = path, policy, noun
        self.count = self.spanning = self.first_spanning = 0

    def report(self, number: int, reason: str, text: str) -> None:
        """Count line `number` (from 1), or raise UserError under the policy `error`."""
        if self.policy == "error":
            raise self.error(number, reason, text, "; data.on_bad_line=skip leaves such lines out")
        self.count += 1

    def error(self, number: int, reason: str, text: str, hint: str = "") -> UserError:
        """Return the error for a line. To be raised under either policy where a line cannot be skipped."""
        readable = text.rstrip("\r\n").encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
        if len(readable) > _SHOWN:
            readable = readable[:_SHOWN] + "..."
        return UserError(f"{self.path}, {self.noun} {number}: {reason}: {readable!r}{hint}")
