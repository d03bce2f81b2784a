"""What a run was made with: versions and commit."""

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path

_PACKAGES = ("distrec", "ray", "torch", "torch-geometric", "pyarrow", "numpy", "numba", "triton", "mlflow")


def versions() -> dict[str, str]:
    """{"python": "3.11.9", "torch": "2.13.0", ...}; packages that are not installed are left out."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def git_commit(path: Path) -> str | None:
    """The commit of the repository that tracks `path`, with `-dirty` if tracked files were changed.

    None where there is no git, no repository or no commit, or where git ignores `path`: code installed in a virtual
    environment inside somebody's repository is not of that repository.
    """
    if _git(path, "ls-files", "--error-unmatch", "--", ".") is None:
        return None
    return _git(path, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")


def _git(path: Path, *arguments: str) -> str | None:
    folder = path if path.is_dir() else path.parent
    # Only look: without this, `describe --dirty` may take the index lock from under a commit that the user is making.
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], env=environment, capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None
