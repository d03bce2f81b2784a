"""Compilation of loops by numba, and their launch on as many threads as torch uses.

The order of each sum must be fixed by the loop, so that the number of threads does not change the result.
"""

import os
import threading
from collections.abc import Callable
from types import FunctionType
from typing import Any, NamedTuple

import numba
import torch

# numba's own thread pool ("workqueue", where OpenMP is missing) aborts when two threads launch at once.
_launch = threading.Lock()
_forked = False


def _mark_forked() -> None:
    global _forked
    _forked = True  # the pool's threads do not survive a fork: OpenMP would abort the process, workqueue would hang


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_mark_forked)


class Loop(NamedTuple):
    """One function in two compiled forms; the serial one needs no thread pool."""

    serial: Callable[..., None]
    parallel: Callable[..., None]


def loop(function: Callable[..., None]) -> Loop:
    """Compile a function with a `prange` over independent iterations, at its first call, both serial and parallel.

    A closure is cached on disk if what it encloses are functions of `register_jitable`: the cache key includes them by
    name. An enclosed dispatcher of `njit` would have another key in each process, and never be found.
    """
    # No fastmath: results would depend on how the compiler vectorises for this machine.
    options = {"cache": True, "nogil": True, "error_model": "numpy"}
    return Loop(numba.njit(**options)(function), numba.njit(parallel=True, **options)(_renamed(function)))


def _renamed(function: Callable[..., None]) -> Callable[..., None]:
    """Return the function under another name: numba's cache key has the name, but not the options of compilation."""
    copy = FunctionType(function.__code__, function.__globals__, closure=function.__closure__)
    copy.__qualname__ = f"{function.__qualname__}_parallel"
    return copy


def run(compiled: Loop, *arguments: Any) -> None:
    """Run a loop on as many threads as torch uses."""
    threads = min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS)
    if threads == 1 or _forked:
        compiled.serial(*arguments)
        return
    with _launch:
        numba.set_num_threads(threads)
        compiled.parallel(*arguments)
