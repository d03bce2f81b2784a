"""A real `mlflow server` on a free loopback port, for one test. No process of it outlives the test."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@contextmanager
def mlflow_server(folder, port):
    """Yield the URI. A server restarted on the same folder has the same runs."""
    folder.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{folder}/server.db"]
    command += ["--serve-artifacts", "--artifacts-destination", str(folder / "artifacts")]
    environment = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    log = folder / "server.log"
    with log.open("a") as output:
        server = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=output, stderr=output, start_new_session=True
        )
    try:
        _poll_health(server, f"http://127.0.0.1:{port}", log)
        yield f"http://127.0.0.1:{port}"
    finally:
        _stop(server)


def _poll_health(server, uri, log, seconds=120):
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        assert server.poll() is None, log.read_text()[-2000:]
        try:
            with opener.open(f"{uri}/health", timeout=2) as answer:
                if answer.status == 200:
                    return
        except OSError:
            time.sleep(0.1)
    raise AssertionError(f"no answer after {seconds} s:\n{log.read_text()[-2000:]}")


def _stop(server):
    """Stop all processes of the server's session (it starts workers) and poll until they are gone."""
    for signal_number in (signal.SIGTERM, signal.SIGKILL):
        for pid in _session(server.pid):
            try:
                os.kill(pid, signal_number)
            except ProcessLookupError:
                continue
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            server.poll()
            if server.returncode is not None and not _session(server.pid):
                return
            time.sleep(0.05)
    raise AssertionError(f"left behind: {_session(server.pid)}")


def _session(leader):
    """Return the live processes of a session; workers may have process groups of their own."""
    found = []
    for entry in os.listdir("/proc"):
        try:
            if entry.isdigit() and os.getsid(int(entry)) == leader:
                with open(f"/proc/{entry}/stat") as stat:
                    if stat.read().rpartition(")")[2].split()[0] != "Z":
                        found.append(int(entry))
        except (OSError, IndexError):
            continue
    return found
