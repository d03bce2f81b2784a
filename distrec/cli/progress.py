"""Terminal output: a progress bar, or one line an epoch in a log file, and tables of results."""

import os
import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any, Literal

import rich.progress
from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.filesize import pick_unit_and_suffix
from rich.live import Live
from rich.measure import Measurement
from rich.table import Column, Table
from rich.text import Text

from distrec.tracking.result_table import Row, columns, is_numeric, markdown_table, texts

Event = Mapping[str, Any]
Mode = Literal["auto", "plain", "quiet"]

_STATUS_S = 10.0  # least time between a line and a status where statuses are printed


class Terminal(Console):
    """A console that falls silent when the program that reads its output has ended: a training goes on without it."""

    def on_broken_pipe(self) -> None:
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), self.file.fileno())


class Progress:
    """Display of a training. Called with events:

        {"kind": "step", "epoch": 3, "epochs": 15, "step": 120, "steps": 396, "loss": 4.1, "interactions_per_s": 1.2e5}
        {"kind": "epoch", "epoch": 3, "epochs": 15, "loss": 4.0, "seconds": 31.2, "metrics": {"recall@20": 0.15}}
        {"kind": "note", "text": "..."}
        {"kind": "status", "text": "reading train.csv: 1,200,000 rows, 3 s"}

    `epoch` and `step` count from 1 and are complete. `metrics` is optional.

    A terminal shows the last status until the next event; elsewhere a status is printed every ten seconds.
    """

    def __init__(self, mode: Mode = "auto", console: Console | None = None) -> None:
        """
        Args:
            mode: `auto` draws a bar if the console is a terminal, `plain` never does, `quiet` prints nothing.
            console: default: standard output.
        """
        self._console = console or Terminal()
        self._quiet = mode == "quiet"
        self._bar = _Bar(self._console) if mode == "auto" and self._console.is_terminal else None
        self._last_line = -_STATUS_S

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *error: object) -> None:
        """Erase the bar and restore the cursor."""
        if self._bar:
            self._bar.close()

    def __call__(self, event: Event) -> None:
        """Display one event."""
        if self._quiet:
            return
        if self._bar:
            self._bar.show_status(event["text"] if event["kind"] == "status" else "")
        match event["kind"]:
            case "step":
                if self._bar:
                    self._bar.advance(event)
            case "epoch":
                self._line(epoch_line(event))
            case "note":
                self._line(event["text"])
            case "status":
                if not self._bar and time.monotonic() - self._last_line >= _STATUS_S:
                    self._line(event["text"])
            case kind:
                raise AssertionError(f"unknown event {kind!r}")

    def _line(self, text: str) -> None:
        self._last_line = time.monotonic()
        # Not wrapped in a file, so that lines can be grepped; wrapped at words in a terminal.
        self._console.print(Text(text), soft_wrap=not self._console.is_terminal)


def epoch_line(event: Event) -> str:
    """Return `epoch  3/15  loss 4.1030  31.2 s  recall@20 0.1590  ndcg@20 0.1362`, aligned from line to line."""
    metrics = [f"{name} {value:.4f}" for name, value in event.get("metrics", {}).items()]
    return "  ".join(
        [f"epoch {_done(event, 'epoch')}", f"loss {_short(event['loss'])}", f"{event['seconds']:.1f} s", *metrics]
    )


def results_table(rows: Sequence[Row], console: Console | None = None) -> None:
    """Print a table of results: transposed if too wide for the terminal, as Markdown if still too wide or in a file."""
    console = console or Console()
    if not rows:
        return
    unlimited = console.options.update(max_width=10_000)
    for table in (_table(rows), _transposed(rows)) if console.is_terminal else ():
        if Measurement.get(console, unlimited, table).maximum <= console.width:
            console.print(table)
            return
    console.print(Text(markdown_table(rows)), soft_wrap=True)


class _Bar:
    """One bar for the whole training, drawn from the first step, and a line for the status."""

    def __init__(self, console: Console) -> None:
        self._progress = rich.progress.Progress(
            rich.progress.TextColumn("epoch {task.fields[epoch]}"),
            rich.progress.BarColumn(bar_width=None, table_column=Column(ratio=1, min_width=8)),
            rich.progress.TextColumn("step {task.fields[step]}"),
            rich.progress.TextColumn("loss {task.fields[loss]}"),
            rich.progress.TextColumn("{task.fields[rate]}"),
            rich.progress.TextColumn("{task.fields[remaining]}"),
            console=console,
            expand=True,
        )
        self._status = Text(style="dim", no_wrap=True, overflow="ellipsis")
        self._live = Live(get_renderable=self._render, console=console, transient=True, refresh_per_second=5)
        self._task: rich.progress.TaskID | None = None
        self._started, self._done_at_start = 0.0, 0

    def _render(self) -> RenderableType:
        return Group(*([self._progress] if self._progress.tasks else []), *([self._status] if self._status else []))

    def show_status(self, text: str) -> None:
        """Show a line below the bar; "" shows none."""
        self._status.plain = text
        if text:
            self._live.start()
            self._live.refresh()

    def advance(self, event: Event) -> None:
        total = event["epochs"] * event["steps"]
        done = (event["epoch"] - 1) * event["steps"] + event["step"]
        fields: dict[str, Any] = {
            "epoch": _done(event, "epoch"),
            "step": _done(event, "step"),
            "loss": _short(event["loss"]),
            "rate": f"{_rate(event['interactions_per_s'])}/s",
        }
        now = time.monotonic()
        if self._task is None:
            # A resumed training starts in the middle: steps done before do not count towards the speed.
            self._started, self._done_at_start = now, done
            self._task = self._progress.add_task("", total=total, completed=done, remaining="", **fields)
            self._live.start(refresh=True)
            return
        # Mean speed since the start, so that the estimate includes the evaluations between epochs.
        new = done - self._done_at_start
        seconds = round((now - self._started) / new * (total - done)) if new > 0 else 0
        remaining = f"{timedelta(seconds=seconds)} left"
        self._progress.update(self._task, total=total, completed=done, remaining=remaining, **fields)

    def close(self) -> None:
        self._live.stop()


def _table(rows: Sequence[Row]) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for name in columns(rows):
        table.add_column(Text(name), justify="right" if is_numeric(rows, name) else "left", no_wrap=True)
    for cells in zip(*(texts(rows, name) for name in columns(rows)), strict=True):
        table.add_row(*map(Text, cells))
    return table


def _transposed(rows: Sequence[Row]) -> Table:
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="dim")
    for _ in rows:
        table.add_column(justify="right")
    for name in columns(rows):
        table.add_row(Text(name), *map(Text, texts(rows, name)))
    return table


def _done(event: Event, what: str) -> str:
    """Return ` 3/15`, aligned from event to event."""
    return f"{event[what]:>{len(str(event[what + 's']))}}/{event[what + 's']}"


def _short(value: float) -> str:
    """Format a loss with 4 decimals, or with 4 significant digits if it is very small or large."""
    return f"{value:.4f}" if 0.01 <= abs(value) < 1000 or value == 0 else f"{value:.4g}"


def _rate(value: float) -> str:
    """Format as 121k or 1.2M: at most 5 characters."""
    size, suffix = pick_unit_and_suffix(int(value), ["", "k", "M", "G"], 1000)
    return f"{value / size:.{1 if suffix and value < 10 * size else 0}f}{suffix}"
