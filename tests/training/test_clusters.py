"""Whole runs on a real second Ray that is busy or runs Ray Tune, and two runs at once: each ends and says why."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SMALL = (
    *("data.planted.users=300", "data.planted.items=200", "data.planted.interactions=6000", "data.buckets=12"),
    *("model.dim=16", "train.epochs=1", "train.device=cpu"),
)
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def start(folder, *words, **environment):
    """Start `distrec train` in a folder; stdout and stderr together."""
    command = [sys.executable, "-m", "distrec.cli.main", "train", *SMALL, *words]
    env = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    return subprocess.Popen(
        command, cwd=folder, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, bufsize=1
    )


def finish(process):
    """Wait for the end of a process; return (exit code, output)."""
    output, _ = process.communicate(timeout=300)
    return process.returncode, output


class OtherRay:
    """The process of other_ray.py."""

    def __init__(self, folder):
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.training.other_ray"],
            **{"cwd": folder, "env": env, "text": True, "stdin": subprocess.PIPE, "stdout": subprocess.PIPE},
        )
        self.address = self._answer()

    def do(self, *words):
        """Send a command; return the answer."""
        self.process.stdin.write(" ".join(map(str, words)) + "\n")
        self.process.stdin.flush()
        return self._answer()

    def _answer(self):
        for line in self.process.stdout:
            if line.startswith(('"', "true", "null")):  # not what Ray Tune prints
                return json.loads(line)
        raise AssertionError("the process of the other Ray has ended")


@pytest.fixture(scope="module")
def other_ray(tmp_path_factory):
    """Return a Ray with two CPUs in another process."""
    other = OtherRay(tmp_path_factory.mktemp("other"))
    yield other
    other.process.stdin.close()
    other.process.wait(60)


def test_a_busy_cluster_is_waited_for_with_a_line_and_a_limit(other_ray, tmp_path, request):
    environment = {"RAY_ADDRESS": other_ray.address, "RAY_AUTH_MODE": "token"}
    assert other_ray.do("hold") is True
    request.addfinalizer(lambda: other_ray.do("release"))
    code, output = finish(start(tmp_path, "train.workers=1", "run.dir=short", "train.wait_s=5", **environment))
    assert code == 2 and "Traceback" not in output, output
    assert "ray: waiting for 1.5 CPUs; 0 of 2 are free" in output, output
    assert "no room in the Ray cluster after 5 s (train.wait_s): the run needs 1.5 CPUs; 0 of 2 are free" in output, (
        output
    )
    assert not (tmp_path / "short").exists()
    process = start(tmp_path, "train.workers=1", "run.dir=long", **environment)
    while "waiting for 1.5 CPUs; 0 of 2 are free" not in (line := process.stdout.readline()):
        assert line, "ended without waiting"
    other_ray.do("release")
    code, output = finish(process)
    assert code == 0 and (tmp_path / "long" / "result.json").exists()


@pytest.mark.parametrize(
    ("cpus", "workers", "outcome"),
    [
        (2, 2, r"{'valid/recall@20'"),  # with the CPUs of the group
        (2, 1, r"{'valid/recall@20'"),
        (1, 1, r"{'valid/recall@20'"),
        (0.1, 1, r"{'valid/recall@20'"),  # with CPUs outside
        (
            1,
            2,
            "UserError: train.workers=2 needs 3 CPUs; 1 of 2 are free, and the placement group of this process has 1",
        ),
    ],
)
def test_a_trial_of_ray_tune_uses_its_own_cpus_or_says_what_it_lacks(other_ray, tmp_path, cpus, workers, outcome):
    assert other_ray.do("trial", cpus, workers, tmp_path / "run", tmp_path / "cache").startswith(outcome)


def test_two_runs_at_once_share_neither_a_folder_nor_a_record(tmp_path):
    processes = [start(tmp_path, "train.workers=1", "train.stream=thread") for _ in range(2)]
    for process in processes:
        code, output = finish(process)
        assert code == 0, output
    facts = [json.loads((tmp_path / "runs" / name / "run.json").read_text()) for name in ("distrec", "distrec-2")]
    assert facts[0]["mlflow_run"] != facts[1]["mlflow_run"] and facts[0]["data"] == facts[1]["data"]
    results = [json.loads((tmp_path / "runs" / name / "result.json").read_text()) for name in ("distrec", "distrec-2")]
    assert results[0]["metrics"] == results[1]["metrics"]
    assert not list((tmp_path / "runs").rglob("*.lock"))


def test_a_killed_run_leaves_a_folder_that_can_be_resumed_and_a_live_one_does_not(tmp_path):
    words = ("train.workers=1", "train.stream=thread", "run.dir=run", "train.epochs=500", "tracking.enabled=false")
    process = start(tmp_path, *words)
    while not list((tmp_path / "run").glob("checkpoints/checkpoint_*/*.pt")):
        assert process.poll() is None
        time.sleep(0.2)
    code, output = finish(start(tmp_path, *words, "run.resume=true"))
    assert code == 2 and f"run is used by another run, process {process.pid} on " in output
    process.send_signal(signal.SIGKILL)
    process.wait()
    resumed = start(tmp_path, *words, "run.resume=true")
    while "resumed after epoch" not in (line := resumed.stdout.readline()):
        assert line, "ended without resuming"
    resumed.send_signal(signal.SIGINT)
    assert finish(resumed)[0] == 130
