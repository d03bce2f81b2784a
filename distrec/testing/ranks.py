"""Starts a group of ranks for a test: real processes, real gloo, one deadline, every traceback and exit code seen."""

import multiprocessing
import pickle
import tempfile
import time
import traceback
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

_NOTICE_S = 20.0  # that ranks have to notice that another has failed; a rank may have to compile first


def run_ranks(workers: int, function: Callable[..., Any], *arguments: Any, timeout_s: float = 120) -> list[Any]:
    """Calls `function(*arguments)` in a process group of `workers` processes; returns what each rank returned, by rank.

    Args:
        workers: size of the group. One runs in this process, without a group: that is how one worker works.
        function: importable; its result must be picklable.
        timeout_s: seconds until all ranks are ended.

    Raises:
        AssertionError: a rank raised (with its traceback), ended with an exit code other than 0, or was too slow.
    """
    if workers == 1:
        return [function(*arguments)]
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        ranks = [
            context.Process(target=_run, args=(rank, workers, folder, function, arguments), daemon=True)
            for rank in range(workers)
        ]
        for process in ranks:
            process.start()
        _join(ranks, time.monotonic() + timeout_s)
        reports = [_report(Path(folder), rank) for rank in range(workers)]
        failed = [f"rank {rank}:\n{error}" for rank, (error, _) in enumerate(reports) if error]
        assert not failed, "\n".join(failed)
        codes = [process.exitcode for process in ranks]
        assert codes == [0] * workers, f"exit codes {codes}"
        return [value for _, value in reports]


def _join(ranks: list[BaseProcess], deadline: float) -> None:
    """Waits for all ranks, or for the first that fails: the others may yet notice and say so, then they are ended."""
    while any(p.is_alive() for p in ranks) and time.monotonic() < deadline:
        time.sleep(0.02)
        if any(p.exitcode for p in ranks):
            deadline = min(deadline, time.monotonic() + _NOTICE_S)
    for process in ranks:
        process.join(0)
        if process.is_alive():
            process.kill()
            process.join()


def _run(rank: int, workers: int, folder: str, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    error, value = "", None
    try:
        dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=workers)
        value = function(*arguments)
        dist.barrier()
        dist.destroy_process_group()
    except BaseException:
        error = traceback.format_exc()
    Path(folder, f"report-{rank}.partial").write_bytes(pickle.dumps((error, value)))
    Path(folder, f"report-{rank}.partial").rename(Path(folder, f"report-{rank}"))
    if error:
        raise SystemExit(1)


def _report(folder: Path, rank: int) -> tuple[str, Any]:
    file = folder / f"report-{rank}"
    return pickle.loads(file.read_bytes()) if file.exists() else ("ended without a report, or too slow", None)
