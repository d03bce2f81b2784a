"""Lines about work that takes longer than two seconds."""

import time

from distrec.core import status
from distrec.core.status import _Stage, advance, reporting, share, stage


def test_the_lines():
    rows, part, plain = _Stage("reading", "rows"), _Stage("ranking"), _Stage("starting")
    rows.done, part.share = 1_200_000, 0.421
    assert rows.text(rows.start + 1.9) == _Stage().text(rows.start + 99) == ""
    assert rows.text(rows.start + 2) == "reading: 1,200,000 rows, 2 s"
    assert part.text(part.start + 65) == "ranking: 42%, 65 s"
    assert plain.text(plain.start + 3) == "starting: 3 s"


def test_reports_while_the_work_goes_on_and_not_after_it():
    events = []
    stage("before"), advance(3), share(0.5)  # without a receiver: nothing happens
    with reporting(events.append):
        stage("reading", "rows")
        advance(2)
        advance(3)
        deadline = time.monotonic() + 20
        while not events and time.monotonic() < deadline:
            time.sleep(0.1)
    count = len(events)
    assert events[0]["kind"] == "status" and events[0]["text"].startswith("reading: 5 rows, ")
    time.sleep(1.2)
    assert len(events) == count


def test_a_receiver_that_fails_does_not_end_the_work(monkeypatch):
    events = []

    def fail(event):
        events.append(event)
        raise ConnectionError

    monkeypatch.setattr(status, "_AFTER_S", 0.0)
    monkeypatch.setattr(status, "_INTERVAL_S", 0.05)
    with reporting(fail):
        stage("working")
        time.sleep(0.5)
    assert events
