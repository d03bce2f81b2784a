"""The progress display and the tables of results, on a terminal and in a log file."""

import io
import os
import re

import pytest
from rich.console import Console

from distrec.cli.progress import Progress, Terminal, _rate, epoch_line, results_table
from distrec.tracking.result_table import markdown_table, texts

ROWS = [
    {"model": "mf", "workers": 1, "recall@20": 0.159, "seconds": 9.5},
    {"model": "lightgcn", "workers": 16, "recall@20": 0.183, "seconds": 112.5, "note": "a|b"},
]


def console(terminal, width=80):
    return Console(file=io.StringIO(), force_terminal=terminal, width=width, _environ={"TERM": "xterm"})


def steps(epochs=3, size=4, first=1):
    for epoch in range(first, epochs + 1):
        for step in range(1, size + 1):
            yield {
                "kind": "step",
                "epoch": epoch,
                "epochs": epochs,
                "step": step,
                "steps": size,
                "loss": 4.1,
                "interactions_per_s": 1.2e5,
            }
        yield {
            "kind": "epoch",
            "epoch": epoch,
            "epochs": epochs,
            "loss": 4.0,
            "seconds": 31.24,
            "metrics": {"recall@20": 0.159},
        }


def run(out, mode="auto", events=None):
    with Progress(mode, out) as progress:
        progress({"kind": "note", "text": "[data] 12 users"})
        for event in events or steps():
            progress(event)
    return out.file.getvalue()


def test_a_log_file_has_one_line_an_epoch():
    assert run(console(terminal=False)).splitlines() == [
        "[data] 12 users",
        "epoch 1/3  loss 4.0000  31.2 s  recall@20 0.1590",
        "epoch 2/3  loss 4.0000  31.2 s  recall@20 0.1590",
        "epoch 3/3  loss 4.0000  31.2 s  recall@20 0.1590",
    ]


def test_a_long_line_is_not_broken_in_a_log_file():
    events = [
        {
            "kind": "epoch",
            "epoch": 1,
            "epochs": 1,
            "loss": 1.0,
            "seconds": 1.0,
            "metrics": {f"m{i}": 0.5 for i in range(30)},
        }
    ]
    assert len(run(console(terminal=False), events=events).splitlines()) == 2


def test_a_terminal_shows_a_bar_that_is_erased_at_the_end():
    text = run(console(terminal=True))
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
    assert "━" in plain and "120k/s" in plain and "loss 4.1000" in plain and "left" in plain
    assert plain.count("recall@20") == 3 and "epoch 3/3  loss" in plain
    assert text.endswith("\x1b[2K") and "\x1b[?25h" in text, "bar erased, cursor restored"
    assert max(len(line) for line in re.split(r"[\r\n]", plain)) <= 80


STATUSES = [{"kind": "status", "text": f"reading a.csv: {n} lines, {n} s"} for n in range(2, 30)]


def test_a_terminal_shows_the_status_until_the_next_event():
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", run(console(terminal=True), events=[*STATUSES, *steps()]))
    assert "reading a.csv: 2 lines" in plain and "reading" not in plain.split("epoch 1/3")[-1]


def test_a_log_file_has_a_status_every_ten_seconds(monkeypatch):
    clock = iter(range(1000))
    monkeypatch.setattr("distrec.cli.progress.time.monotonic", lambda: next(clock))
    lines = run(console(terminal=False), events=STATUSES).splitlines()[1:]
    assert 2 <= len(lines) <= 3 and run(console(terminal=False), "quiet", STATUSES) == ""


def test_plain_in_a_terminal_and_quiet():
    assert "━" not in run(console(terminal=True), "plain")
    assert run(console(terminal=True), "quiet") == run(console(terminal=False), "quiet") == ""


def test_resumed_training_starts_in_the_middle():
    text = run(console(terminal=True), events=steps(epochs=3, first=3))
    assert "epoch 3/3" in text


def test_events_without_metrics_and_odd_losses():
    assert (
        epoch_line({"epoch": 2, "epochs": 15, "loss": float("nan"), "seconds": 1.0}) == "epoch  2/15  loss nan  1.0 s"
    )
    assert "loss 1.5e-05 " in epoch_line({"epoch": 2, "epochs": 15, "loss": 1.5e-5, "seconds": 1.0, "metrics": {}})
    with pytest.raises(AssertionError, match="unknown event 'stpe'"):
        Progress("plain", console(False))({"kind": "stpe"})


def test_rates():
    assert [_rate(x) for x in (0, 950, 1200, 121_300, 1.24e6)] == ["0", "950", "1.2k", "121k", "1.2M"]


def test_markdown_is_aligned_and_escaped():
    assert markdown_table(ROWS).splitlines() == [
        "| model    | workers | recall@20 | seconds | note |",
        "| -------- | ------: | --------: | ------: | ---- |",
        "| mf       |       1 |    0.1590 |     9.5 |      |",
        r"| lightgcn |      16 |    0.1830 |   112.5 | a\|b |",
    ]
    assert markdown_table([]) == ""


@pytest.mark.parametrize("width", [30, 40, 80, 120])
def test_table_in_a_terminal_shows_every_figure(width):
    out = console(terminal=True, width=width)
    results_table(ROWS, out)
    shown = ("0.1590", "0.1830", "112.5", "lightgcn", "a|b", "recall@20")
    assert all(figure in out.file.getvalue() for figure in shown)


def test_table_in_a_file_is_markdown():
    out = console(terminal=False, width=20)
    results_table(ROWS, out)
    results_table([], out)
    assert out.file.getvalue().strip() == markdown_table(ROWS).strip()


def test_a_reader_that_has_ended_does_not_stop_a_training():
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as file:
        progress = Progress(console=Terminal(file=file))
        for _ in range(2):
            progress({"kind": "note", "text": "still training"})


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.2048, 0.25, 30.14], ["0.2048", "0.2500", "30.1"]),  # metrics beside a count
        ([9.34, 12.1], ["9.3", "12.1"]),  # seconds
        ([0.0, None, 100.0, float("nan")], ["0.0000", "", "100.0", "nan"]),
    ],
)
def test_digits_of_a_column(values, expected):
    assert texts([{"value": value} for value in values], "value") == expected
