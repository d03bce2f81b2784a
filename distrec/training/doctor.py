"""Checks of this machine and its surroundings: what a run would need, and whether it is there."""

import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch

from distrec.core.errors import UserError
from distrec.core.memory import first_line, free_memory
from distrec.core.status import stage
from distrec.data.config import PLANTED
from distrec.tracking import open_tracker
from distrec.tracking.environment import versions
from distrec.training.cluster import check_resources, describe_resources
from distrec.training.config import Config
from distrec.training.connection import MIN_SHM, describe_connection, ray_running

_MIN_FREE, _MIN_MEMORY = 2**30, 2 * 2**30  # bytes: disk, memory of a worker and Ray


class Finding(NamedTuple):
    """One line of the report."""

    what: str
    text: str
    ok: bool = True


def examine(config: Config) -> Iterator[Finding]:
    """Yield what was found on this machine, and whether a run of this configuration will work here."""
    yield Finding("system", f"{platform.platform()}, Python {platform.python_version()} at {sys.executable}")
    found = versions()
    for group in (("distrec", "ray", "torch", "mlflow"), ("numba", "numpy", "pyarrow", "triton")):
        yield Finding("versions", ", ".join(f"{name} {found.get(name, 'not installed')}" for name in group))
    yield from _resources(config)
    folder = config.run.dir or Path("runs")
    yield _writable("run folder", folder)
    yield _writable("data cache", config.data.cache)
    yield _writable("temporary", Path(tempfile.gettempdir()))
    yield _writable("home", Path.home(), needed=False)
    yield _attempt("compiled code", _compile)
    source = Path(config.data.source)
    there = config.data.source == PLANTED or source.exists() or any(Path().glob(config.data.source))
    yield Finding("data", f"{config.data.source}{'' if there else ': does not exist'}", there)
    yield _attempt("MLflow", lambda: _mlflow(config, folder))
    yield _attempt("Ray", lambda: _ray(config))


def _resources(config: Config) -> Iterator[Finding]:
    workers, cores = config.train.workers, _cores()
    slow = f"; train.workers={workers} share them" if workers > cores else ""
    yield Finding("cores", f"{cores:g} of {os.cpu_count()}{slow}")
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    lacking = config.train.device == "cuda" and len(gpus) < workers
    cuda = f", CUDA {torch.version.cuda}" if torch.version.cuda else ", torch is built without CUDA"
    need = f"; train.device=cuda needs {workers}" if lacking else ""
    yield Finding("GPUs", (", ".join(gpus) or "none: runs use the CPU") + cuda + need, not lacking)
    memory = free_memory(torch.device("cpu"))
    if memory is not None:
        text = (
            f"{memory / 2**30:.1f} GiB free; Ray and {workers} workers need some {(1 + workers) / 2:.1f} for small data"
        )
        yield Finding("memory", text, memory >= _MIN_MEMORY)
    if os.path.isdir("/dev/shm"):
        free = shutil.disk_usage("/dev/shm").free
        small = "" if free >= MIN_SHM else ": Ray and the workers use files, which is slower (Docker: --shm-size=2g)"
        yield Finding("/dev/shm", f"{free / 2**30:.2f} GiB free{small}")


def _cores() -> float:
    """Return the cores that this process may use: its affinity, and the quota of its container."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota, _, period = first_line("/sys/fs/cgroup/cpu.max").partition(" ")
    return min(allowed, int(quota) / int(period)) if quota.isdecimal() else allowed


def _writable(what: str, folder: Path, needed: bool = True) -> Finding:
    """Write to a folder, or the nearest existing one above it."""
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=existing) as file:
            file.write(b"x")
    except OSError as error:
        return Finding(what, f"{folder} cannot be written: {error.strerror}", not needed)
    free = shutil.disk_usage(existing).free
    few = "" if free >= _MIN_FREE else ": too little for checkpoints of large tables"
    return Finding(what, f"{folder}, {free / 2**30:.1f} GiB free{few}", free >= _MIN_FREE or not needed)


def _attempt(what: str, check: Callable[[], str]) -> Finding:
    stage(f"checking {what}")
    try:
        return Finding(what, check())
    except UserError as error:
        return Finding(what, " ".join(str(error).split()), False)
    except Exception as error:  # a report, not a run: whatever is broken is a line of it
        return Finding(what, f"{type(error).__name__}: {' '.join(str(error).split())[:300]}", False)
    finally:
        stage("")


def _compile() -> str:
    from distrec.kernels.numba.launch import run
    from distrec.kernels.numba.optimizer import _READ

    rows = torch.ones(2, 2)
    run(_READ, rows.numpy(), torch.arange(2).numpy(), 3.0, rows.numpy())
    return f"numba works, cached in {_READ.serial.stats.cache_path}"  # type: ignore[attr-defined]


def _mlflow(config: Config, folder: Path) -> str:
    tracker = open_tracker(config.tracking, folder / "run" if config.run.dir is None else folder)
    return f"{tracker.destination}: {tracker.check()}"


def _ray(config: Config) -> str:
    notes = [describe_connection()]
    with ray_running(config.train.workers, note=notes.append):
        check_resources(config)
        notes.append(describe_resources())
    return "; ".join(notes)
