"""Terminal output of a search: a live table of the trials that run, or one line a trial in a log file."""

import time
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from distrec.cli.progress import Mode, Progress, Terminal
from distrec.tuning.journal import REFIT, Record
from distrec.tuning.search import Search
from distrec.tuning.trial_table import short


class SearchProgress:
    """Display of a search. Called with the events of `distrec.tune`."""

    def __init__(self, mode: Mode = "auto", console: Console | None = None) -> None:
        """Arguments as of `Progress`, which displays what comes before the trials."""
        self._console = console or Terminal()
        self._quiet = mode == "quiet"
        self._progress = Progress("quiet" if self._quiet else "plain", self._console)
        live = mode == "auto" and self._console.is_terminal
        self._is_live = live
        self._search: Search | None = None
        self._epochs: dict[str, int] = {}
        self._started: dict[str, float] = {}
        self._start_s, self._done_at_start = time.monotonic(), 0
        self._live = Live(get_renderable=self._render, console=self._console, transient=True, refresh_per_second=2)

    def __enter__(self) -> "SearchProgress":
        return self

    def __exit__(self, *error: object) -> None:
        """Erase the table."""
        self._live.stop()

    def __call__(self, event: Mapping[str, Any]) -> None:
        """Display one event."""
        match event["kind"]:
            case "search":
                self._search = event["search"]
                self._start_s, self._done_at_start = time.monotonic(), self._done()
                if self._is_live:
                    self._live.start()
            case "trial":
                self._started[event["trial"]] = time.monotonic()
            case "report":
                self._epochs[event["trial"]] = event["epochs"]
            case "end":
                self._print_end(event["trial"])
            case "status" if self._search is not None:
                pass
            case _:
                self._progress(event)

    def _print_end(self, name: str) -> None:
        """Print a line on a trial that has ended, and on the search."""
        if self._quiet or self._search is None:
            return
        record, metric = self._search.journal.records[name], self._search.config.metric
        point, end = record.best(metric), record.end or {}
        words = [
            f"{'' if record.is_refit else 'trial '}{name}",
            f"{record.ended} after {record.epochs} epoch{'s' * (record.epochs != 1)}",
        ]
        words += [f"{metric} {point[1]:.4f} at epoch {point[0]}"] if point else []
        words += [f"{key} {value:.4f}" for key, value in end.get("metrics", {}).items()]
        words += [f"{record.seconds:.1f} s"]
        words += [] if record.is_refit else [_values(record)]
        words += [end["text"].splitlines()[0]] if end.get("text") else []
        line = Text("  ".join(words))
        self._console.print(line, soft_wrap=not self._console.is_terminal)
        if not self._is_live:
            self._console.print(Text(f"  {self._summary()}"), soft_wrap=True)

    def _done(self) -> int:
        assert self._search is not None
        return sum(record.end is not None for record in self._search.journal.records.trials)

    def _summary(self) -> str:
        """Return `7 of 24 trials, best ndcg@20 0.2041 (trial 0003), 0:04:10 left`."""
        assert self._search is not None
        search, done = self._search, self._done()
        words = [f"{done}{f' of {search.most_trials}' if search.most_trials else ''} trials"]
        best = search.best()
        if best is not None and (point := best.best(search.config.metric)):
            words.append(f"best {search.config.metric} {point[1]:.4f} (trial {best.name})")
        words.append(f"{timedelta(seconds=round(search.elapsed_s))} so far")
        if any(name.startswith(REFIT) for name in search.live.copy()):
            words.append("training the best again with the validation part")
        elif (left_s := self._left_s(done)) is not None:
            words.append(f"{timedelta(seconds=round(left_s))} left")
        return ", ".join(words)

    def _left_s(self, done: int) -> float | None:
        """Return the seconds that remain, from the mean speed of this part of the search; None if unknown."""
        assert self._search is not None
        search, new = self._search, done - self._done_at_start
        limits = []
        if search.most_trials is not None and new > 0:
            limits.append((time.monotonic() - self._start_s) / new * (search.most_trials - done))
        if search.config.tune.minutes is not None:
            limits.append(60 * search.config.tune.minutes - search.elapsed_s)
        return max(0.0, min(limits)) if limits else None

    def _render(self) -> RenderableType:
        if self._search is None:
            return Text()
        search = self._search
        table = Table(box=SIMPLE_HEAD, pad_edge=False)
        for column in ("trial", "epoch", search.config.metric, "best", "s"):
            table.add_column(column, justify="right", no_wrap=True)
        table.add_column("values", overflow="fold")
        for name in sorted(search.live.copy()):
            record = search.journal.records[name]
            curve, point = record.curve(search.config.metric), record.best(search.config.metric)
            epoch = f"{record.epochs}/{self._epochs[name]}" if name in self._epochs else "starts"
            seconds = time.monotonic() - self._started.get(name, self._start_s)
            values = [f"{curve[-1][1]:.4f}" if curve else "", f"{point[1]:.4f}" if point else ""]
            table.add_row(name, epoch, *values, f"{seconds:.0f}", _values(record))
        return Group(table, Text(self._summary(), style="bold"))


def _values(record: Record) -> str:
    return " ".join(f"{key}={short(value)}" for key, value in record.values.items())
