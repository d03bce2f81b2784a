"""The recorder of a search, while another thread adds to the journal."""

import pytest

from distrec.core.config import parse
from distrec.tracking.base import Tracker
from distrec.tuning.config import SearchConfig
from distrec.tuning.folder import SearchFolder
from distrec.tuning.journal import Records
from distrec.tuning.recorder import Recorder


class Collected(Tracker):
    """Keeps the steps it is given, and lets something happen between them."""

    run_id = "run"

    def __init__(self, meanwhile):
        self.steps, self.status, self.meanwhile = [], None, meanwhile

    def log_metrics(self, metrics, step):
        if "train/loss" in metrics:
            self.steps.append(step)
            self.meanwhile()

    def finish(self, status="FINISHED"):
        self.status = status


@pytest.mark.parametrize("ends", [False, True])
def test_epochs_that_are_added_meanwhile_are_recorded(tmp_path, monkeypatch, ends):
    records = Records(tmp_path / "journal.jsonl")
    records.apply({"kind": "trial", "trial": "0000", "values": {}, "s": 0})

    def add():
        epoch = len(record.reports) + 1
        if epoch <= 3:
            report = {"kind": "report", "trial": "0000", "s": epoch, "epoch": epoch, "loss": 1.0, "seconds": 1.0}
            records.apply(report | ({"end": {"reason": "finished"}} if ends and epoch == 3 else {}))

    record = records["0000"]
    add()
    child = Collected(add)
    monkeypatch.setattr(Recorder, "open_child", lambda *arguments: child)
    recorder = Recorder(parse(SearchConfig, {}), SearchFolder(tmp_path), {}, print)
    for _ in range(3):
        recorder.update(record, dict)
    assert (child.steps, child.status) == ([1, 2, 3], "FINISHED" if ends else None)
