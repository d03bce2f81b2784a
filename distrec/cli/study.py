"""The command `distrec study`."""

import argparse
import sys
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

EXAMPLES = """\
examples:
  distrec study configs/studies/negatives_simce.yaml --small data.source=path/to/ml-100k
  distrec study configs/studies/negatives_simce.yaml data.source=path/to/gowalla --parallel 2

A second call goes on where the first was stopped, and runs only what has changed. docs/studies.md says how to write a
study, and lists those that ship.
"""


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Add the arguments of the command to its parser."""
    command.epilog = EXAMPLES
    command.add_argument("study", type=Path, metavar="STUDY", help="a study file")
    text = "overrides for all runs, such as data.source=path/to/gowalla"
    command.add_argument("words", nargs="*", metavar="key=value", help=text)
    command.add_argument("--small", action="store_true", help="the small size of the study, of minutes")
    command.add_argument("--parallel", type=int, default=1, metavar="P", help="runs side by side (default: 1)")
    command.add_argument("--out", type=Path, metavar="DIR", help="folder of the study (default: runs/NAME)")
    command.add_argument("--quiet", action="store_true", help="print only the table")


def run(arguments: argparse.Namespace) -> None:
    """Run a study, and print its table."""
    from distrec.cli.progress import Progress, results_table
    from distrec.training.driver import stopped_by_sigterm
    from distrec.tuning.studies import study
    from distrec.tuning.study_config import Size
    from distrec.tuning.study_rows import explanation, text_rows

    progress = Progress("quiet" if arguments.quiet else "plain")

    def show(event: Mapping[str, Any]) -> None:
        if event["kind"] == "run":
            progress({"kind": "note", "text": run_line(event)})
        elif event["kind"] == "end":
            progress({"kind": "note", "text": f"  trial {event['trial']} has ended"})
        elif event["kind"] in ("note", "status"):
            progress(event)

    size: Size = "small" if arguments.small else "full"
    try:
        with progress, stopped_by_sigterm():
            found = study(arguments.study, arguments.words, size, arguments.out, arguments.parallel, show)
    except KeyboardInterrupt:
        print("\nThe same command goes on from here.", file=sys.stderr)
        raise KeyboardInterrupt from None
    results_table(text_rows(found.table))
    print("\n".join(explanation(found.table)))
    for name, text in found.failed.items():
        print(f"failed: {name}: {text}")
    print(f"study folder  {found.folder}")


def run_line(event: Mapping[str, Any]) -> str:
    """Return `12 of 48: loss=ssm, seed 0: ndcg@20 0.3061, 20 epochs, 14.2 s; 0:08:31 left`."""
    if event["error"] is not None:
        figures = [f"failed: {event['error'].splitlines()[0]}"]
    else:
        figures = [f"{name} {value:.4f}" for name, value in event["figures"].items()]
        figures += [f"{event['epochs']} epochs", f"{event['seconds']:.1f} s"]
    left = f"; {timedelta(seconds=round(event['left_s']))} left" if event["done"] < event["runs"] else ""
    return f"{event['done']} of {event['runs']}: {event['cell']}, seed {event['seed']}: {', '.join(figures)}{left}"
