"""Environment of a run: package versions, git commit, hardware."""

import contextlib
import importlib.metadata
import os
import platform
import subprocess
from datetime import date
from pathlib import Path

_PACKAGES = ("distrec", "ray", "torch", "torch-geometric", "pyarrow", "numpy", "numba", "triton", "mlflow")


def versions() -> dict[str, str]:
    """Return {"python": "3.11.9", "torch": "2.13.0", ...}, without packages that are not installed."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def hardware() -> str:
    """Return the processor, cores and memory of this machine."""
    model = platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        model = names[0].split(":", 1)[1].strip() if names else model
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{model}, {os.cpu_count()} cores, {memory:.0f} GiB"


def facts(*packages: str) -> dict[str, str]:
    """Return what figures depend on, by name: the date of today, hardware, and versions of installed packages."""
    installed = versions()
    chosen = {name: installed[name] for name in packages if name in installed}
    return {"date": date.today().isoformat(), "hardware": hardware(), **chosen}


def git_commit(path: Path) -> str | None:
    """Return the commit of the repository that tracks `path`, with the suffix `-dirty` if tracked files were changed.

    None without git, without a repository or a commit, or if the repository ignores `path`, such as code installed in
    a virtual environment inside an unrelated repository.
    """
    if _git(path, "ls-files", "--error-unmatch", "--", ".") is None:
        return None
    return _git(path, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")


def _git(path: Path, *arguments: str) -> str | None:
    folder = path if path.is_dir() else path.parent
    # Read only: otherwise `describe --dirty` may take the index lock and make a commit of the user fail.
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], env=environment, capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None
