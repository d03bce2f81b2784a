"""Whole runs on machines that are full, read-only or short of shared memory: one line each, and what is done is kept.

Each runs in a mount namespace of its own, where small or read-only file systems lie over the folders.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SMALL = (
    *("data.planted.users=300", "data.planted.items=200", "data.planted.interactions=6000", "data.buckets=12"),
    *("model.dim=16", "train.device=cpu", "train.workers=2", "train.stream=thread", "train.epochs=2"),
)
NAMESPACE = ["unshare", "--mount", "--map-root-user"]


def can_mount() -> bool:
    """Return whether this user may mount file systems in a namespace of its own."""
    try:
        return subprocess.run([*NAMESPACE, "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True).returncode == 0
    except FileNotFoundError:
        return False


pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(not can_mount(), reason="needs mount namespaces"),
]


def run(folder, script, **environment):
    """Run a shell script in a namespace of its own; `$DISTREC` is the command line. Return (exit code, output)."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1", **environment}
    env |= {"DISTREC": f"{sys.executable} -m distrec.cli.main", "SMALL": " ".join(SMALL), "ROOT": str(ROOT)}
    ended = subprocess.run(
        [*NAMESPACE, "bash", "-c", script], cwd=folder, env=env, text=True, stdout=-1, stderr=subprocess.STDOUT
    )
    assert "Traceback" not in ended.stdout, ended.stdout
    return ended.returncode, ended.stdout


def test_long_tmpdir_read_only_home_and_install_and_little_shared_memory(tmp_path):
    """As in a container with Docker's defaults. Compiled code goes to a temporary folder."""
    long = tmp_path / ("x" * 100)
    long.mkdir()
    script = """
        mkdir home && mount -t tmpfs -o ro none home && mount -t tmpfs -o size=64m none /dev/shm
        mount --bind $ROOT $ROOT && mount -o remount,ro,bind $ROOT
        HOME=$PWD/home $DISTREC train $SMALL run.dir=run"""
    code, output = run(tmp_path, script, TMPDIR=str(long))
    assert code == 0 and (tmp_path / "run" / "result.json").exists(), output
    assert f"ray: the path {long} (TMPDIR) is too long for sockets; Ray uses /tmp" in output
    assert "ray: /dev/shm has 64 MiB free" in output
    assert list(long.glob("distrec-compiled-*/*"))


@pytest.mark.parametrize(
    ("size", "words", "message"),
    [
        ("20k", "", "cannot write to c (data.cache): No space left on device"),
        ("150k", "tracking.enabled=false", "make room, and go on with run.resume=true"),
        ("300k", "", "cannot record to MLflow at sqlite:///"),
    ],
    ids=["preparing", "checkpointing", "recording"],
)
def test_a_full_disk(tmp_path, size, words, message):
    script = f"""
        mkdir full && mount -t tmpfs -o size={size} none full && cd full
        $DISTREC train $SMALL run.dir=run data.cache=c {words} 2>&1; code=$?
        find . -name '.*.lock' -o -name '.planted*' -o -name run.lock
        exit $code"""
    code, output = run(tmp_path, script)
    assert code == 2 and message in output, output
    assert ".lock" not in output and "/.planted" not in output


def test_a_run_goes_on_after_the_disk_was_full(tmp_path):
    """The checkpoint of the second epoch does not fit; with more room the run resumes after the first."""
    script = """
        mkdir full && mount -t tmpfs -o size=250k none full && cd full
        $DISTREC train $SMALL run.dir=run data.cache=../c tracking.enabled=false train.epochs=9 2>&1; code=$?
        mount -o remount,size=9m $PWD && df $PWD && ls run/checkpoints
        [ $code = 2 ] && $DISTREC train $SMALL run.dir=run data.cache=../c tracking.enabled=false train.epochs=9 \
            run.resume=true"""
    code, output = run(tmp_path, script)
    assert code == 0, output
    assert "No space left on device; make room, and go on with run.resume=true" in output
    assert "is damaged, and renamed to damaged_" in output and "resumed after epoch" in output
    assert "epoch 9/9" in output


@pytest.mark.parametrize("run_dir", ["locked/run", "locked", "/proc/run"])
def test_a_read_only_run_folder_is_not_blamed_on_mlflow(tmp_path, run_dir):
    script = f"mkdir locked && mount -t tmpfs -o ro none locked && $DISTREC train $SMALL run.dir={run_dir}"
    code, output = run(tmp_path, script)
    assert code == 2 and "MLflow" not in output, output
    path = tmp_path / run_dir
    assert output.splitlines()[-1].startswith(f"distrec: cannot write the run folder {path} (run.dir): "), output


def test_a_full_temporary_folder_stops_ray_at_once(tmp_path):
    with tempfile.TemporaryDirectory(dir="/tmp") as full:  # a short path, or Ray would use another
        script = f"mount -t tmpfs -o size=1m none {full} && TMPDIR={full} $DISTREC train $SMALL run.dir=run"
        code, output = run(tmp_path, script)
    assert code == 2 and f"Ray cannot start: {full} has 1 MiB free; free some space, or set RAY_TMPDIR" in output, (
        output
    )
