"""Run a function on every rank of a process group: real processes, real gloo, deadlines, tracebacks, exit codes.

A group of W processes is started once for all tests that need it, as a start takes seconds. A function that changes
the state of its process, or does not return, gets a group of its own (`fresh=True`).
"""

import multiprocessing
import tempfile
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

import torch
import torch.distributed as dist

_NOTICE_S = 20.0  # for the other ranks to report once one has failed; a rank may have to compile first
_EXIT_S, _POLL_S = 30.0, 0.02

_groups: dict[int, "_Group"] = {}


def run_ranks(
    workers: int, function: Callable[..., Any], *arguments: Any, timeout_s: float = 120, fresh: bool = False
) -> list[Any]:
    """Call `function(*arguments)` on every rank and return the results by rank.

    Args:
        workers: size of the process group. One rank runs in this process, without a group, as one worker does.
        function: importable; arguments and result must be picklable.
        timeout_s: seconds until ranks that have not returned are killed.
        fresh: use a group of its own, which ends with the call.

    Raises:
        AssertionError: a rank raised (with its traceback), exited, or was too slow; its group is killed.
    """
    if workers == 1:
        return [function(*arguments)]
    group = None if fresh else _groups.pop(workers, None)
    group = group or _Group(workers)
    try:
        results = group.run(function, arguments, timeout_s)
    except BaseException:
        group.kill()
        raise
    if fresh:
        group.close()
    else:
        _groups[workers] = group
    return results


def close_groups() -> None:
    """End the groups that are kept. Raises AssertionError for an exit code other than 0."""
    while _groups:
        _groups.popitem()[1].close()


class _Group:
    """The processes of one gloo group, each waiting at a pipe for functions to call."""

    def __init__(self, workers: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._folder = tempfile.TemporaryDirectory()
        self._ranks: dict[Connection, BaseProcess] = {}
        for rank in range(workers):
            pipe, theirs = context.Pipe()
            arguments = (rank, workers, self._folder.name, theirs)
            self._ranks[pipe] = context.Process(target=_serve, args=arguments, daemon=True)
            self._ranks[pipe].start()
            theirs.close()  # so that an exit of the rank ends the pipe

    def run(self, function: Callable[..., Any], arguments: tuple[Any, ...], timeout_s: float) -> list[Any]:
        """Call a function on every rank."""
        for pipe in self._ranks:
            pipe.send((function, arguments))
        reports: dict[Connection, tuple[str, Any]] = dict.fromkeys(self._ranks, ("too slow", None))
        waiting, deadline = list(self._ranks), time.monotonic() + timeout_s
        while waiting and time.monotonic() < deadline:
            for pipe in [pipe for pipe in waiting if pipe.poll(_POLL_S)]:
                waiting.remove(pipe)
                reports[pipe] = self._receive(pipe)
                if reports[pipe][0]:
                    deadline = min(deadline, time.monotonic() + _NOTICE_S)
        failed = [f"rank {rank}:\n{error}" for rank, (error, _) in enumerate(reports.values()) if error]
        assert not failed, "\n".join(failed)
        return [value for _, value in reports.values()]

    def _receive(self, pipe: Connection) -> tuple[str, Any]:
        try:
            report: tuple[str, Any] = pipe.recv()
        except EOFError:
            self._ranks[pipe].join(_EXIT_S)
            report = f"ended without a report, exit code {self._ranks[pipe].exitcode}", None
        return report

    def close(self) -> None:
        """End the processes and check their exit codes."""
        for pipe in self._ranks:
            pipe.send(None)
        for process in self._ranks.values():
            process.join(_EXIT_S)
        codes = [process.exitcode for process in self._ranks.values()]
        self.kill()
        assert codes == [0] * len(codes), f"exit codes {codes}"

    def kill(self) -> None:
        """Kill the processes that are left."""
        for process in self._ranks.values():
            process.kill()
            process.join()
        self._folder.cleanup()


def _serve(rank: int, workers: int, folder: str, pipe: Connection) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=workers)
    while (call := pipe.recv()) is not None:
        function, arguments = call
        torch.manual_seed(0)
        error, value = "", None
        try:
            value = function(*arguments)
            dist.barrier()
        except BaseException:
            error = traceback.format_exc()
        pipe.send((error, value))
        if error:
            raise SystemExit(1)
    dist.destroy_process_group()
