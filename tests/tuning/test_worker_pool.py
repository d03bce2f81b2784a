"""Jobs in processes: each once, a process that is killed is replaced, and none outlives the process that started it."""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from distrec.tuning.worker_pool import run_jobs


def work(job: tuple[str, Path], stops) -> str | None:
    """Do what the job says, and note that it was tried."""
    what, folder = job
    with (folder / what).open("a") as file:
        file.write(f"{os.getpid()}\n")
    if what == "killed" or (what == "killed_once" and len((folder / what).read_text().splitlines()) == 1):
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "dies_later":
        threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGKILL)).start()
    if what == "waits_for_death":
        while not (folder / "dead").exists():
            time.sleep(0.1)
    if what == "waits":
        while not stops():
            time.sleep(0.1)
    return f"{what} failed" if what.startswith("fails") else None


def lines(file: Path) -> list[str]:
    return file.read_text().splitlines()


@pytest.mark.timeout(120)
def test_jobs_in_processes(tmp_path):
    before = set(multiprocessing.active_children())
    names = ["a", "killed", "fails", "killed_once", "b", "c"]
    found = dict(run_jobs(work, [(name, tmp_path) for name in names], 2))
    assert [found[k] for k in (0, 2, 3, 4, 5)] == [None, "fails failed", None, None, None]
    assert found[1] == "its process ended 2 times: killed, or out of memory"
    tries = {name: len(lines(tmp_path / name)) for name in names}
    assert tries == dict.fromkeys(names, 1) | {"killed": 2, "killed_once": 2}
    pids = {line for name in names for line in lines(tmp_path / name)}
    assert str(os.getpid()) not in pids and len(pids) <= 2 + 3  # three ended
    assert set(multiprocessing.active_children()) <= before  # other tests keep processes of their own


@pytest.mark.timeout(120)
def test_a_process_that_ends_while_it_has_no_job_is_replaced(tmp_path):
    jobs = run_jobs(work, [(name, tmp_path) for name in ("dies_later", "waits_for_death", "b")], 2)
    assert next(jobs) == (0, None)
    (pid,) = lines(tmp_path / "dies_later")
    deadline = time.monotonic() + 60
    while status(int(pid)) != "Z":
        assert time.monotonic() < deadline
        time.sleep(0.05)
    (tmp_path / "dead").touch()
    assert dict(jobs) == {1: None, 2: None} and len(lines(tmp_path / "b")) == 1


def test_one_process_is_this_one(tmp_path):
    assert list(run_jobs(work, [("a", tmp_path), ("fails", tmp_path)], 1)) == [(0, None), (1, "fails failed")]
    assert lines(tmp_path / "a") == [str(os.getpid())]


@pytest.mark.timeout(120)
def test_processes_end_when_the_iteration_is_left(tmp_path):
    before = set(multiprocessing.active_children())
    jobs = run_jobs(work, [("a", tmp_path), ("waits", tmp_path)], 2)
    assert next(jobs)[0] == 0
    jobs.close()
    assert set(multiprocessing.active_children()) <= before  # other tests keep processes of their own


@pytest.mark.timeout(120)
@pytest.mark.long
def test_a_process_ends_with_its_parent(tmp_path):
    code = (
        "import sys; from pathlib import Path; from tests.tuning.test_worker_pool import *\n"
        "if __name__ == '__main__': list(run_jobs(work, [('waits', Path(sys.argv[1]))] * 2, 2))"
    )
    script = tmp_path / "script.py"
    script.write_text(code)
    path = os.pathsep.join(filter(None, [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH")]))
    parent = subprocess.Popen([sys.executable, script, tmp_path], env={**os.environ, "PYTHONPATH": path})
    deadline = time.monotonic() + 100
    while not (tmp_path / "waits").exists() or len(lines(tmp_path / "waits")) < 2:
        assert time.monotonic() < deadline and parent.poll() is None
        time.sleep(0.2)
    parent.kill()
    parent.wait()
    pids = [int(line) for line in lines(tmp_path / "waits")]
    while any(Path(f"/proc/{pid}").exists() and "Z" not in status(pid) for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.2)


def status(pid: int) -> str:
    """Return the state of a process: Z for a zombie, or one that has just ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "Z"
