"""Versions of packages and the git commit of the code."""

import subprocess

from distrec.tracking.environment import git_commit, versions


def git(folder, *arguments):
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
    done = subprocess.run(["git", *identity, *arguments], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_versions_of_packages():
    found = versions()
    assert {"python", "distrec", "torch", "numpy", "mlflow", "ray", "pyarrow"} <= found.keys()
    assert all(found.values())


def test_commit_clean_dirty_and_absent(tmp_path):
    assert git_commit(tmp_path) is None, "no repository"
    git(tmp_path, "init", "-q")
    code = tmp_path / "code.py"
    code.write_text("1")
    (tmp_path / ".gitignore").write_text("venv/")
    assert git_commit(tmp_path) is None, "no commit"
    git(tmp_path, "add", "-A")
    git(tmp_path, "commit", "-qm", "first")
    head = git(tmp_path, "rev-parse", "HEAD")
    assert git_commit(tmp_path) == git_commit(code) == head and len(head) == 40
    (tmp_path / "venv").mkdir()
    (tmp_path / "venv" / "installed.py").write_text("1")
    assert git_commit(tmp_path / "venv") is None, "not of this repository"
    code.write_text("2")
    assert git_commit(tmp_path) == f"{head}-dirty"
