"""The command line: output, exit codes, one message for a mistake, Ctrl-C and resume."""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

from distrec.cli.main import _resume_hint, main
from distrec.core.errors import UserError
from distrec.losses import losses
from distrec.training.config import Config
from distrec.training.driver import stopped_by_sigterm, train
from distrec.training.run_folder import RunFolder
from tests.conftest import EPOCHS, SMALL, changed


def command(*words: str, cwd: Path) -> subprocess.Popen:
    """Start the command line in a process and a session of its own."""
    return subprocess.Popen(
        [sys.executable, "-u", "-m", "distrec.cli.main", *words],
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A background job of a shell ignores SIGINT, and its children inherit that; a job in a terminal does not.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def run(capsys, *words: str) -> tuple[int, str, str]:
    """Run a command in this process; return (exit code, stdout, stderr)."""
    code = 0
    try:
        main(list(words))
    except SystemExit as error:
        code = error.code or 0
    out, err = capsys.readouterr()
    return code, out, err


def test_help_teaches(capsys):
    code, out, _ = run(capsys, "--help")
    assert code == 0 and all(name in out for name in ("train", "prepare", "evaluate", "info", "keys"))
    assert "distrec train configs/" in run(capsys, "train", "--help")[1]
    out = run(capsys, "keys")[1]
    assert "optim.decay.strength=0.0" in out and "auto | cpu | cuda" in out and "eval.k=[20]" in out
    lines = [line.rstrip() for line in run(capsys, "keys", "loss")[1].splitlines()]
    assert lines[0].startswith("loss.name=ssm   bce | bpr | ") and all(
        line.lstrip() == line or line[:4] == " " * 4 for line in lines
    )
    first, after = lines.index("    loss.name=bpr"), lines.index("    loss.name=ssm")
    assert "Rendle" in " ".join(lines[first:after])
    assert (
        "        loss.temperature=0.1   float" in lines[after:] and "        loss.log_q=false   bool" in lines[after:]
    )


def test_help_needs_no_heavy_import():
    loaded = (
        "import sys, distrec.cli.main; print([m for m in ('torch', 'ray', 'mlflow', 'pandas') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", loaded], capture_output=True, text=True).stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train", "loss.temprature=2"], "distrec: unknown key 'loss.temprature'; nearest known: loss.temperature"),
        (["train", "no.yaml"], "distrec: no configuration file no.yaml"),
        (["train", "a.yaml", "b.yaml"], "one configuration file at a time"),
        (["train", "data.source=nowhere"], "nowhere"),
        (["train", "train.workers=100"], "more than the data's 64 buckets"),
        (["train", "run.resume=true", "run.dir=nothing"], "nothing holds no run"),
        (
            ["train", "tracking.uri=http://127.0.0.1:9", "data.planted.users=20", "data.planted.interactions=99"],
            "MLflow",
        ),
        (["info", "nowhere"], "there is no nowhere"),
        (["train", "my data.csv"], "to train on it: 'data.source=my data.csv'"),
        (["train", "a=b.yaml"], "a=b.yaml is empty"),
        (["train", "train.watch=auc@20"], "train.watch: 'auc@20' is not a validation metric"),
        (["train", "mine.csv"], "mine.csv is not a configuration file; to train on it: data.source=mine.csv"),
        (["train", "--quiet", "optim.lr=0"], "optim.lr: Input should be greater than 0"),
        (["train", "optim.lr=1", "--quiet", "loss.name=bprr"], "unknown loss 'bprr'"),
        (
            ["train", "tracking.uri=http://[::1"],
            "distrec: tracking.uri 'http://[::1' is not an address: Invalid IPv6 URL",
        ),
        (["train", "run.imports=no_such_module"], "distrec: run.imports: cannot import no_such_module"),
        (["evaluate", "nowhere"], "nowhere is not a run folder"),
    ],
)
def test_a_mistake_is_one_message_and_exit_code_2(capsys, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a=b.yaml").touch()
    code, out, err = run(capsys, *words)
    assert code == 2 and message in err
    assert "Traceback" not in out + err


def test_dropped_options_are_noted(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.yaml").write_text("loss: {temperature: 0.2}\ndata: {source: nowhere}\n")
    _, out, err = run(capsys, "prepare", "run.yaml", "loss.name=bpr")
    note = "distrec: note: loss.name=bpr: dropped loss.temperature=0.2 of the run file, an option of ssm\n"
    assert err.startswith(note) and out == ""


def test_run_folders_of_another_format_are_refused(capsys, tmp_path):
    (tmp_path / "old").mkdir()
    folder = RunFolder(tmp_path / "old")
    folder.start(Config(), {})
    assert folder.facts() == {"format": 2} and folder.config() == Config()
    resume = [f"run.dir={folder.path}", "run.resume=true"]
    for facts, version in (
        ("{}", "an older version of distrec (run format 1)"),
        ('{"format": 3}', "a newer version of"),
    ):
        (folder.path / "run.json").write_text(facts)
        (folder.path / "config.yaml").write_text("model: {init_std: 0.01}\n")  # a key of format 1
        for words in (["info", str(folder.path)], ["evaluate", str(folder.path)], ["train", *resume]):
            code, _, err = run(capsys, *words)
            assert (
                code == 2
                and err.startswith(f"distrec: {folder.path} was written by {version}")
                and err.count("\n") == 1
            )


def test_a_broken_line_is_shown_and_can_be_skipped(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.csv").write_text("user,item\nana,tea\nana\nbob,tea\nbob,rum\n")
    code, _, err = run(capsys, "prepare", "data.source=mine.csv", "data.test_fraction=0.5")
    assert code == 2 and "mine.csv" in err and "line 3" in err and "ana" in err
    code, out, _ = run(capsys, "prepare", "data.source=mine.csv", "data.test_fraction=0.5", "data.on_bad_line=skip")
    assert code == 0 and re.search(r"bad lines left out +1", out)
    folder = out.strip().splitlines()[-1]
    code, out, _ = run(capsys, "info", folder)
    assert code == 0 and re.search(r"users +2 ", out) and re.search(r"density", out)


def test_paths_in_printed_commands_are_quoted(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = RunFolder(tmp_path / "exp #2; it's")
    folder.path.mkdir()
    folder.start(Config(), {})
    _, out, _ = run(capsys, "info", f"~/{folder.path.name}")
    command = shlex.split(out.strip().splitlines()[-1])
    assert command[:3] == ["distrec", "train", str(folder.config_file)] and command[3] == f"run.dir={folder.path}"
    assert shlex.split(_resume_hint(["train", "a b.yaml"], str(folder.path)).splitlines()[1])[2:4] == [
        "a b.yaml",
        f"run.dir={folder.path}",
    ]


def test_the_doctor_reports_what_will_not_work(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")
    monkeypatch.setattr("distrec.training.connection._CONNECT_S", 1.0)
    (tmp_path / "file").touch()
    words = ["run.dir=file/run", "data.source=gone.csv", "tracking.uri=http://127.0.0.1:9", "train.device=cuda"]
    code, out, _ = run(capsys, "doctor", *words)
    failed = {line.split()[1] for line in out.splitlines() if line.startswith("FAIL")}
    assert code == 1 and failed >= {"data", "MLflow", "Ray"} and 12 <= len(out.splitlines()) <= 20
    assert "run" in failed and ("GPUs" in failed or torch.cuda.is_available())
    assert list(tmp_path.iterdir()) == [tmp_path / "file"], "a report leaves nothing behind"


def processes_of(session: int) -> list[str]:
    """Return the command lines of the processes of a session."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
            if int(fields[3]) == session and fields[0] != "Z":
                found.append((stat.parent / "cmdline").read_text().replace("\0", " "))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def printed_metrics(text: str) -> dict[str, str]:
    """Return the metrics of the test part in a printed table."""
    return dict(re.findall(r"(test/\w+@20)\s+\|\s+(0\.\d{4})", text))


def test_sigterm_stops_a_run_that_a_script_started_in_the_background():
    """There SIGINT is ignored."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with pytest.raises(KeyboardInterrupt), stopped_by_sigterm():
            signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.timeout(280)
@pytest.mark.long
def test_ctrl_c_resume_evaluate_info(whole, empty_store, tmp_path, monkeypatch, capsys):
    """A run stopped by Ctrl-C prints how to resume it and leaves no process; resumed, it ends like `whole`.

    This one has one worker, `whole` has two.
    """
    options = SMALL["train"] | {"epochs": EPOCHS, "workers": 1, "stream": "thread"}
    (tmp_path / "runs").mkdir()
    shutil.copy(empty_store, tmp_path / "runs" / "mlflow.db")
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(SMALL | {"train": options}))
    stopped = command("train", "small.yaml", cwd=tmp_path)
    for line in stopped.stdout:
        if line.startswith(f"epoch  2/{EPOCHS}"):
            os.kill(stopped.pid, signal.SIGINT)
            break
    out, err = stopped.communicate(timeout=60)
    assert stopped.returncode == 130, err
    folder = tmp_path / "runs" / "small"
    assert f"distrec train small.yaml run.dir={folder} run.resume=true" in err
    assert "Traceback" not in err
    deadline = time.monotonic() + 20
    while (remaining := processes_of(stopped.pid)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert remaining == []

    monkeypatch.chdir(tmp_path)
    config = changed(RunFolder(folder).config(), run={"dir": str(folder)})
    assert list((folder / "checkpoints").glob("checkpoint_*")) and not (folder / "result.json").exists()
    with pytest.raises(UserError, match="holds a run already: go on with run.resume=true"):
        train(config)
    with pytest.raises(UserError, match=r"another configuration: optim.lr was 0.01, is 0.5"):
        train(changed(config, run={"resume": True}, optim={"lr": 0.5}))
    code, out, err = run(capsys, "train", "small.yaml", "run.resume=true")
    assert code == 0, err
    assert "resumed after epoch" in out and f"epoch  1/{EPOCHS}" not in out and f"epoch {EPOCHS}/{EPOCHS}" in out
    result = RunFolder(folder).result()
    assert result.metrics == pytest.approx(whole[0].metrics, abs=5e-4)
    assert result.loss == pytest.approx(whole[0].loss, rel=1e-5)
    metrics = printed_metrics(out)
    assert metrics == {key: f"{value:.4f}" for key, value in result.metrics.items() if key.startswith("test/")}

    code, out, _ = run(capsys, "train", "small.yaml", "run.resume=true", "--quiet")  # the run has ended
    assert code == 0 and "epoch" not in out and printed_metrics(out) == metrics
    code, out, _ = run(capsys, "evaluate", str(folder), "eval.k=[20]")
    assert code == 0 and printed_metrics(out) == metrics and f"checkpoint after epoch {EPOCHS} of {EPOCHS}" in out
    assert run(capsys, "evaluate", str(folder), "optim.lr=3")[0] == 2
    assert "run folder of mf with ssm on planted" in run(capsys, "info", str(folder))[1]


def test_keys_of_parts_that_a_module_registers(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = "from distrec.losses import losses\nfrom distrec.losses.pairwise import BPR\n"
    code += "@losses.register('keys_test_loss')\nclass Other(BPR):\n    pass\n"
    (tmp_path / "keys_test_module.py").write_text(code)
    try:
        assert "loss.name=keys_test_loss" in run(capsys, "keys", "loss", "run.imports=keys_test_module")[1]
    finally:
        losses.pop("keys_test_loss", None)
    code, _, err = run(capsys, "keys", "los.name")
    assert code == 2 and "no key begins or ends with 'los.name'; the sections are data, model, loss" in err


@pytest.mark.parametrize(
    ("word", "first", "last", "without"),
    [
        ("lr", "optim.lr=", "    Peak learning rate.", "loss"),
        ("loss.name=ssm", "    loss.name=ssm", "log(N q) from their scores.", "loss.form"),
        ("loss.temperature", "    loss.name=bsl", "", "loss.form"),
        ("optim.decay", "optim.decay.scope=none", "", "optim.lr"),
    ],
)
def test_keys_of_a_word(capsys, word, first, last, without):
    """A part's keys come with its title."""
    code, out, _ = run(capsys, "keys", word)
    lines = [line.rstrip() for line in out.splitlines()]
    assert code == 0 and lines[0].startswith(first) and lines[-1].endswith(last)
    assert not any(line.lstrip().startswith(without + ("." if without == "loss" else "")) for line in lines)


@pytest.mark.long
def test_output_that_nobody_reads_or_that_is_not_utf8(tmp_path):
    (tmp_path / "d").mkdir()
    (tmp_path / "d/\u65e5.csv").write_text("user,item\n1,2\n")
    shell = f"{sys.executable} -m distrec.cli.main"
    script = f"""
        PYTHONIOENCODING=ascii {shell} prepare data.source=d/\u65e5.csv && {shell} info d/\u65e5.csv | true
        LC_ALL=C PYTHONUTF8=0 PYTHONCOERCECLOCALE=0 {shell} info d/\u65e5.csv
    """
    done = subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert "runs/prepared/\\u65e5-" in done.stdout and "Error" not in done.stderr, done.stderr
    assert "is not text in ascii: rename the file, or use a UTF-8 locale" in done.stderr


@pytest.mark.parametrize("text", ["[]", '{"format": "x"}', "{"])
def test_a_damaged_description_of_a_run(tmp_path, capsys, text):
    (tmp_path / "config.yaml").write_text("data: {source: a.csv}\n")
    (tmp_path / "run.json").write_text(text)
    for name in ("info", "evaluate"):
        code, _, err = run(capsys, name, str(tmp_path))
        assert code == 2 and "run.json is damaged" in err


def test_a_path_that_is_too_long(capsys):
    code, _, err = run(capsys, "info", "x" * 300 + ".csv")
    assert code == 2 and "File name too long" in err
