"""The command `report`. Heavy modules are imported when it runs."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from distrec.core.errors import UserError
from distrec.core.section import expand_user


def add_report(command: argparse.ArgumentParser) -> None:
    """Add the arguments of `distrec report`."""
    command.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="run folders, or the folder of a search")
    text = "the file to write (default: report.html)"
    command.add_argument("--out", type=Path, default=Path("report.html"), metavar="FILE", help=text)


def report(arguments: argparse.Namespace, note: Callable[[str], None]) -> None:
    """Run `distrec report`: write the file, and add it to the runs in MLflow that are recorded there."""
    from distrec.training.run_folder import RunFolder

    out = _write_search(arguments) if any(map(is_search, arguments.runs)) else _write_runs(arguments, note)
    print(out)
    for run in arguments.runs:
        add_to_recorded_run(RunFolder(run).facts(), out, note)


def _write_runs(arguments: argparse.Namespace, note: Callable[[str], None]) -> Path:
    from distrec.report.page import report as write_report

    return write_report(arguments.runs, arguments.out, note)


def _write_search(arguments: argparse.Namespace) -> Path:
    from distrec.tuning.search_page import write_search_page

    if len(arguments.runs) > 1:
        raise UserError("a search is reported alone; its trials are run folders, which can be compared")
    return write_search_page(arguments.runs[0], arguments.out)


def is_search(path: Path) -> bool:
    """Return whether a path is the folder of a search."""
    return (expand_user(path) / "search.yaml").exists()


def add_to_recorded_run(
    facts: dict[str, Any], path: Path, note: Callable[[str], None], name: str | None = None
) -> str | None:
    """Add a file or folder to the run in MLflow that the facts of a run folder name.

    Returns:
        The id of the run; None if there is none, or it cannot be reached.
    """
    if not (facts.get("mlflow_run") and facts.get("mlflow_uri")):
        return None
    from distrec.tracking.mlflow import add_to_run

    try:
        add_to_run(facts["mlflow_uri"], facts["mlflow_run"], path, name)
    except UserError as error:
        note(str(error))
        return None
    return str(facts["mlflow_run"])
