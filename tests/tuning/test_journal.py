"""The journal: what is read is what was written, whatever byte a kill left as the last."""

import json

import pytest

from distrec.core.errors import UserError
from distrec.tuning.journal import Journal, Records


def written(path):
    journal = Journal(path)
    journal.start("0000", {"optim.lr": 0.1}, 1.0)
    journal.report("0000", {"epoch": 1, "loss": 2.0, "seconds": 3.0, "eval_s": 1.0, "metrics": {"ndcg@20": 0.1}}, 5.0)
    journal.start("0001", {"optim.lr": 0.2}, 6.0)
    end = {"reason": "asha"}
    journal.report("0000", {"epoch": 2, "loss": 2.0, "seconds": 3.0, "metrics": {"ndcg@20": 0.3}}, 9.0, end)
    journal.close()
    return Records(path)


def test_records_are_read_back(tmp_path):
    records = written(tmp_path / "j")
    first, second = records.trials
    assert (first.reason, first.epochs, first.seconds, first.end_s) == ("asha", 2, 7.0, 9.0)
    assert first.curve("ndcg@20") == [(1, 0.1), (2, 0.3)] and first.best("ndcg@20") == (2, 0.3)
    assert (second.reason, second.best("ndcg@20"), records.elapsed_s) == ("", None, 9.0)


def test_a_torn_line_is_cut_off_and_the_journal_goes_on(tmp_path):
    written(tmp_path / "whole")
    content = (tmp_path / "whole").read_bytes()
    for length in range(len(content) + 1):
        path = tmp_path / "torn"
        path.write_bytes(content[:length])
        journal = Journal(path)
        journal.start("0009", {}, 20.0)
        journal.close()
        complete = content[:length].count(b"\n")
        lines = path.read_bytes().splitlines()
        assert lines[:-1] == content.splitlines()[:complete] and json.loads(lines[-1])["trial"] == "0009"
        assert "0009" in Records(path)


def test_damage_before_the_end_is_an_error(tmp_path):
    written(tmp_path / "j")
    lines = (tmp_path / "j").read_text().splitlines()
    for damaged in ("{}", "no json", '{"kind": "report", "trial": "7777", "s": 1}'):
        (tmp_path / "j").write_text("\n".join([lines[0], damaged, *lines[2:]]) + "\n")
        with pytest.raises(UserError, match="line 2 is damaged"):
            Records(tmp_path / "j")
