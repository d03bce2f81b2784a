"""Locks between real processes: one holder at a time, and none after its process was killed."""

import multiprocessing
import os
import signal
import socket
import threading
import time

import pytest

from distrec.core.file_lock import FileLock

FORKS = multiprocessing.get_context("forkserver")


def hold(path, pipe):
    """Lock a file, report it, and sleep with the lock."""
    assert FileLock(path).acquire()
    pipe.send(os.getpid())
    time.sleep(60)


@pytest.fixture
def holder(tmp_path):
    """(the path of a lock, the process that holds it)."""
    pipe, theirs = FORKS.Pipe()
    process = FORKS.Process(target=hold, args=(tmp_path / "lock", theirs), daemon=True)
    process.start()
    assert pipe.recv() == process.pid
    yield tmp_path / "lock", process
    process.kill()
    process.join()


def test_the_lock_of_a_live_process_is_refused_and_that_of_a_dead_one_taken_over(holder):
    path, process = holder
    lock = FileLock(path)
    assert not lock.acquire() and lock.holder() == f"process {process.pid} on {socket.gethostname()}"
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert path.exists() and lock.acquire()
    assert lock.holder() == f"process {os.getpid()} on {socket.gethostname()}"
    lock.release()
    assert not path.exists()


def test_a_wait_names_the_holder_and_ends_with_it(holder):
    path, process = holder
    notes, lock = [], FileLock(path)
    threading.Timer(0.5, process.kill).start()
    lock.acquire_waiting(notes.append)
    assert notes == [f"process {process.pid} on {socket.gethostname()}"]
    lock.release()


def count(path, counter, times):
    """Add to a counter in a file, with a lock around each read and write."""
    for _ in range(times):
        lock = FileLock(path)
        lock.acquire_waiting(lambda holder: None)
        counter.write_text(str(int(counter.read_text()) + 1))
        lock.release()


def test_locks_that_are_deleted_and_made_again_exclude_each_other(tmp_path):
    (tmp_path / "counter").write_text("0")
    arguments = (tmp_path / "lock", tmp_path / "counter", 25)
    processes = [FORKS.Process(target=count, args=arguments) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * 4
    assert (tmp_path / "counter").read_text() == "100"
