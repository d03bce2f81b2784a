"""Runs jobs in this process, or in several processes that are started once and outlive a job that fails.

A process that ends (killed, out of memory) is replaced, and its job is tried once more. Processes end with the one that
started them: at the end of their job's epoch, or at once if they have none.
"""

import contextlib
import multiprocessing
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from multiprocessing import connection
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from typing import Any

_ATTEMPTS = 2
_END_S = 10.0  # limit for a process to end
_LOST = f"its process ended {_ATTEMPTS} times: killed, or out of memory"

Work = Callable[[Any, Callable[[], bool]], str | None]
"""(job, whether to stop) -> error, None without one. A function of a module; it must not raise."""


@dataclass
class _Member:
    process: SpawnProcess
    pipe: Connection
    job: int | None = None


def run_jobs(work: Work, jobs: Sequence[Any], processes: int) -> Generator[tuple[int, str | None], None, None]:
    """Yield (index of the job, error) of each job when it is done.

    Args:
        work: the function.
        jobs: its arguments, which can be pickled if there are several processes.
        processes: number of processes; 1 is this one.
    """
    if processes == 1:
        for k, job in enumerate(jobs):
            yield k, work(job, lambda: False)
        return
    waiting, attempts = list(range(len(jobs)))[::-1], [0] * len(jobs)
    members: list[_Member] = []
    try:
        while waiting or any(member.job is not None for member in members):
            while waiting and len(members) < processes:
                members.append(_start(work))
            for member in members:
                if member.job is None and waiting:
                    member.job = waiting.pop()
                    attempts[member.job] += 1
                    with contextlib.suppress(OSError):  # it ended while it had no job, which `_received` finds
                        member.pipe.send(jobs[member.job])
            busy: dict[Any, _Member] = {member.pipe: member for member in members if member.job is not None}
            for pipe in connection.wait(list(busy)):
                member = busy[pipe]
                job, error = _received(member)
                if error == _LOST:
                    members.remove(member)
                    if attempts[job] < _ATTEMPTS:
                        waiting.append(job)
                        continue
                yield job, error
    finally:
        for member in members:
            _end(member)


def _received(member: _Member) -> tuple[int, str | None]:
    """Return the job of a process that has answered, or ended, and its error."""
    job, member.job = member.job, None
    assert job is not None
    try:
        return job, member.pipe.recv()
    except (EOFError, OSError):
        _end(member)
        return job, _LOST


def _start(work: Work) -> _Member:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(work, theirs), daemon=True)
    process.start()
    theirs.close()  # so that the pipe ends with the process
    return _Member(process, ours)


def _end(member: _Member) -> None:
    """End a process, in the middle of its job if it has one."""
    member.pipe.close()
    if member.job is not None:
        member.process.terminate()
    member.process.join(_END_S)
    if member.process.is_alive():
        member.process.kill()
        member.process.join()


def _serve(work: Work, pipe: Connection) -> None:
    """Run the jobs that come, in a process of its own, until the other end is closed."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    try:
        while True:
            pipe.send(work(pipe.recv(), lambda: not parent.is_alive()))
    except (EOFError, OSError, KeyboardInterrupt):
        return
