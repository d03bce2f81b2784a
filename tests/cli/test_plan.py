"""`distrec plan`: what it prints, what it refuses, and that the examples of docs/plan.md are what it prints.

After a change of the plan or of its costs, write the examples again: python -m tests.cli.test_plan
"""

import contextlib
import io
import re
import shlex
from pathlib import Path

import pytest

from distrec.cli.main import main

DOCUMENT = Path(__file__).parents[2] / "docs" / "plan.md"
EXAMPLE = re.compile(r"^```\n\$ (distrec plan .*?[^\\])\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SIZES = ["--users", "1e6", "--items", "2e6", "--interactions", "3e7"]


def plan(*words: str) -> tuple[int, str, str]:
    """Run the command; return (exit code, stdout, stderr)."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main(["plan", *words])
        except SystemExit as error:
            code = error.code
    return code, out.getvalue(), err.getvalue()


def printed(command: str) -> str:
    """Return what a terminal shows of a command of the document."""
    _, out, err = plan(*shlex.split(command.replace("\\\n", ""))[2:])
    return out + err


def test_the_examples_of_the_document_are_what_is_printed(monkeypatch):
    monkeypatch.chdir(DOCUMENT.parents[1])
    examples = EXAMPLE.findall(DOCUMENT.read_text())
    assert len(examples) >= 3
    for command, text in examples:
        assert printed(command) == text, command


def test_memory_and_exit_code(small):
    code, out, err = plan(*SIZES, "--workers", "2", "--memory", "16", "model.dim=32")
    assert code == 0 and err == ""
    mib = float(re.search(r"^  tables +([\d,.]+)$", out, re.MULTILINE)[1].replace(",", ""))
    assert mib == pytest.approx(3e6 * 32 * 4 / 2 / 2**20, rel=0.001)
    for part in ("optimizer state", "item rows", "look_up", "bottleneck: ", "machine-hours", "costs cpu: "):
        assert part in out
    code, out, err = plan(*SIZES, "--workers", "2", "--memory", "5", "model.dim=32")
    assert code == 2 and "tables" in out and err.startswith("distrec: does not fit: the parts of 2 workers need ")
    assert "what would fit: train.workers=" in err


def test_sizes_of_data(small, dataset):
    words = [f"data.source={dataset.path}", "--memory", "8", "train.batch_size=256", "sampling.negatives=20"]
    code, out, _ = plan(*words)
    m = dataset.manifest
    assert code == 0
    assert out.startswith(f"mf with ssm: {m.users} users, {m.items} items, {m.train:,} training interactions\n")


@pytest.mark.parametrize(
    "words, message",
    [
        (["--users", "10"], "--users, --items and --interactions go together"),
        ([*SIZES, "--workers", "0"], "train.workers"),
        ([*SIZES, "--memory", "-1"], "--memory=-1 must be positive"),
        ([*SIZES, "--workers", "2", "--machines", "3"], "--machines=3 are more than the workers (2)"),
        ([*SIZES, "--latency", "5"], "set --network too"),
        ([*SIZES, "--host-memory", "5"], "set --gpu too"),
        ([*SIZES, "--users", "2.5"], "2.5 is not a whole number"),
        ([*SIZES, "--users", "inf"], "inf is not a whole number"),
        ([*SIZES, "--costs", "nowhere"], "no costs nowhere"),
        ([*SIZES, "--costs", "nowhere.json"], "nowhere.json"),
        (["--users", "2", "--items", "2", "--interactions", "5"], "no more interactions than pairs"),
        ([*SIZES, "--workers", "1000", "train.batch_size=100"], "train.batch_size=100 is less than train.workers=1000"),
        ([*SIZES, "--gpu", "--memory", "99", "--host-memory", "1"], "does not fit: the host of 2 workers needs"),
    ],
)
def test_a_mistake_is_one_message_and_exit_code_2(words, message):
    code, out, err = plan(*words)
    assert code == 2 and message in err and "Traceback" not in out + err


def test_solvers_have_no_step():
    code, out, _ = plan("model.name=ials", *SIZES, "--memory", "64")
    assert code == 0 and "there is no cost model for ials" in out and "sent by a worker" not in out


def write_examples() -> None:
    """Replace what the examples of the document print by what they print now."""
    text = EXAMPLE.sub(lambda found: f"```\n$ {found[1]}\n{printed(found[1])}```", DOCUMENT.read_text())
    DOCUMENT.write_text(text)


if __name__ == "__main__":
    write_examples()
