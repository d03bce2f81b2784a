"""Loops compiled by numba, and their launch on as many threads as torch uses.

The order of each sum must be fixed by the loop, so that the number of threads changes no digit.
"""

import os
import threading
from collections.abc import Callable
from types import FunctionType
from typing import Any, NamedTuple

import numba
import torch

# numba's own thread pool ("workqueue", where OpenMP is missing) dies when two threads launch at once.
_launch = threading.Lock()
_forked = False


def _mark_forked() -> None:
    global _forked
    _forked = True  # a fork has none of its parent's pool threads: OpenMP would end the process, workqueue would hang


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_mark_forked)


class Loop(NamedTuple):
    """One loop, compiled twice at most: without threads there is no pool, and nothing to be wrong with it."""

    serial: Callable[..., None]
    parallel: Callable[..., None]


def loop(function: Callable[..., None]) -> Loop:
    """Both ways to run a function in which `prange` marks what threads may share out. Compiled at the first call."""
    # No fastmath: results would depend on how the compiler vectorises on this machine.
    options = {"cache": True, "nogil": True, "error_model": "numpy"}
    return Loop(numba.njit(**options)(function), numba.njit(parallel=True, **options)(_namesake(function)))


def _namesake(function: Callable[..., None]) -> Callable[..., None]:
    """The function under another name: numba's cache on disk tells by it, and not by how a function was compiled."""
    same = FunctionType(function.__code__, function.__globals__)
    same.__qualname__ = f"{function.__qualname__}_parallel"
    return same


def run(compiled: Loop, *arguments: Any) -> None:
    """Runs a loop on as many threads as torch uses."""
    threads = min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS)
    if threads == 1 or _forked:
        compiled.serial(*arguments)
        return
    with _launch:
        numba.set_num_threads(threads)
        compiled.parallel(*arguments)
