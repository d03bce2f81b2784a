"""The journal of a search: what it has done, as lines of JSON, appended and written to the disk at once."""

import json
import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from distrec.core.errors import UserError, reason_of
from distrec.tuning.space import Values

Event = dict[str, Any]

REFIT = "refit_"
"""Start of the names of refits. A trial's name is its number."""
FINISHED = "finished"
"""Reason of a trial that came to its last epoch, or stopped by `train.patience`."""
FAILED = ("diverged", "failed", "invalid", "lost")
"""Reasons of trials that have no result."""


@dataclass
class Record:
    """What is known of a trial or a refit."""

    name: str
    values: Values
    reports: list[Event] = field(default_factory=list)
    """An event for each epoch: epoch, loss, seconds and, where it was evaluated, metrics."""
    end: Event | None = None
    """reason and, where there is more to say, text; `metrics` of a refit."""
    start_s: float = 0
    end_s: float = 0
    """Seconds of the search at the start and at the last event."""

    @property
    def is_refit(self) -> bool:
        return self.name.startswith(REFIT)

    @property
    def reason(self) -> str:
        """Why it ended; empty while it has not."""
        return self.end["reason"] if self.end else ""

    @property
    def ended(self) -> str:
        """Why it ended, as it is shown."""
        return {"": "not ended", "asha": "stopped by asha", "median": "stopped by median"}.get(self.reason, self.reason)

    @property
    def epochs(self) -> int:
        """Epochs trained."""
        return self.reports[-1]["epoch"] if self.reports else 0

    def curve(self, metric: str) -> list[tuple[int, float]]:
        """Return (epoch, value) of each evaluation."""
        return [(r["epoch"], r["metrics"][metric]) for r in self.reports if metric in r.get("metrics", {})]

    def best(self, metric: str) -> tuple[int, float] | None:
        """Return (epoch, value) of the best evaluation, the first of several; None without any."""
        return max(self.curve(metric), key=lambda point: point[1], default=None)

    @property
    def seconds(self) -> float:
        """Seconds of training and evaluation."""
        return math.fsum(r["seconds"] + r.get("eval_s", 0.0) for r in self.reports)


class Records(dict[str, Record]):
    """The records of a search by name, read from its journal. A last line that was torn by a kill is left out."""

    def __init__(self, path: Path) -> None:
        """Read a journal, which need not exist.

        Raises:
            UserError: it is damaged before its end, or cannot be read.
        """
        self.elapsed_s, self.complete = 0.0, 0
        try:
            lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
        except OSError as error:
            raise UserError(f"cannot read {path}: {reason_of(error)}") from None
        if lines and not lines[-1].endswith(b"\n"):
            lines.pop()
        self.complete = sum(map(len, lines))
        """Bytes of the complete lines."""
        for number, line in enumerate(lines, 1):
            try:
                self.apply(json.loads(line))
            except (ValueError, LookupError, TypeError, AttributeError):
                raise UserError(f"{path}, line {number} is damaged; start a new search in another folder") from None

    @property
    def trials(self) -> list[Record]:
        """The trials, without refits, in the order of their numbers."""
        return [record for record in self.values() if not record.is_refit]

    @property
    def refits(self) -> list[Record]:
        return [record for record in self.values() if record.is_refit]

    def apply(self, event: Event) -> None:
        """Take a line into account."""
        self.elapsed_s = float(event["s"])
        if event["kind"] == "trial":
            record = self[event["trial"]] = Record(event["trial"], event["values"], start_s=self.elapsed_s)
        else:
            record = self[event["trial"]]
            details = {key: value for key, value in event.items() if key not in ("kind", "trial", "s")}
            if event["kind"] == "report":
                end = details.pop("end", None)
                record.reports.append(details)  # before its end: the recorder, in another thread, closes at an end
                record.end = end
            else:
                record.end = details
        record.end_s = self.elapsed_s


class Journal:
    """The journal of a search that runs: its records, and the file to which they are appended."""

    def __init__(self, path: Path) -> None:
        """Read the journal of a search to resume, or start an empty one. Raises UserError."""
        self.path, self.records = path, Records(path)
        try:
            if path.exists():
                os.truncate(path, self.records.complete)
            self._file = path.open("ab", buffering=0)
        except OSError as error:
            raise UserError(f"cannot write {path}: {reason_of(error)}") from None

    def start(self, name: str, values: Values, at_s: float) -> None:
        """Record that a trial has its values."""
        self._append({"kind": "trial", "trial": name, "values": values, "s": at_s})

    def report(self, name: str, report: Event, at_s: float, end: Event | None = None) -> None:
        """Record an epoch of a trial and, in the same line, which a kill cannot divide, its end."""
        self._append({"kind": "report", "trial": name, **report, **({"end": end} if end else {}), "s": at_s})

    def end(self, name: str, end: Event, at_s: float) -> None:
        """Record the end of a trial, with its `reason`."""
        self._append({"kind": "end", "trial": name, **end, "s": at_s})

    def close(self) -> None:
        self._file.close()

    def _append(self, event: Event) -> None:
        try:
            self._file.write((json.dumps(event) + "\n").encode())
            os.fsync(self._file.fileno())
        except OSError as error:
            raise UserError(f"cannot write {self.path}: {reason_of(error)}") from None
        self.records.apply(event)
