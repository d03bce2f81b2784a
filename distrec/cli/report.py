"""The command `report`. Heavy modules are imported when it runs."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from distrec.core.errors import UserError


def add_report(command: argparse.ArgumentParser) -> None:
    """Add the arguments of `distrec report`."""
    command.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="run folders")
    text = "the file to write (default: report.html)"
    command.add_argument("--out", type=Path, default=Path("report.html"), metavar="FILE", help=text)


def report(arguments: argparse.Namespace, note: Callable[[str], None]) -> None:
    """Run `distrec report`: write the file, and add it to the runs in MLflow that are recorded there."""
    from distrec.report.page import report as write_report
    from distrec.training.run_folder import RunFolder

    out = write_report(arguments.runs, arguments.out, note)
    print(out)
    for run in arguments.runs:
        add_to_recorded_run(RunFolder(run).facts(), out, note)


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
