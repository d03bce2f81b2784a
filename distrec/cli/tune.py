"""The command `distrec tune`."""

import argparse
import os
import shlex
import statistics
from pathlib import Path
from typing import Any

from distrec.core.errors import UserError

EXAMPLES = """\
examples:
  distrec tune configs/gowalla_mf_ssm.yaml configs/gowalla.search.yaml data.source=path/to/gowalla
  distrec tune configs/gowalla_mf_ssm.yaml configs/gowalla.search.yaml tune.trials=50 tune.sampler=random
  distrec tune mine.search.yaml data.source=mine.csv data.test_fraction=0.2 tune.minutes=10

A search file gives ranges by key, fixed values, and keys of the search:
  tune: {trials: 24, sampler: tpe, stop: asha}
  data.valid_fraction: 0.1
  optim.lr: {log_uniform: [1.0e-4, 1.0e-2]}
  optim.decay.strength: {log_uniform: [1.0e-6, 1.0e-2], when: {optim.decay.scope: full}}
Kinds of ranges: uniform, log_uniform, quantised, int, log_int, choice, grid. `distrec keys tune` lists the keys.
"""


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Add the arguments of the command to its parser."""
    command.epilog = EXAMPLES
    text = "a run file (optional), a search file, and overrides such as tune.trials=50"
    command.add_argument("words", nargs="*", metavar="CONFIG | SEARCH | key=value", help=text)
    loudness = command.add_mutually_exclusive_group()
    loudness.add_argument("--quiet", action="store_true", help="print only the result")
    loudness.add_argument("--verbose", action="store_true", help="also print the logs of Ray and of the trials")


def run(arguments: argparse.Namespace) -> None:
    """Search, and print the result."""
    files = [word for word in arguments.words if "=" not in word or os.path.isfile(word)]
    overrides = [word for word in arguments.words if word not in files]
    if not 1 <= len(files) <= 2:
        raise UserError(f"distrec tune needs a run file and a search file; got {', '.join(files) or 'none'}")
    from distrec.cli.search_progress import SearchProgress
    from distrec.tuning.tuner import load_search, run_search

    run_file, search_file = (Path(files[0]) if len(files) == 2 else None), Path(files[-1])
    with SearchProgress("quiet" if arguments.quiet else "plain" if arguments.verbose else "auto") as progress:
        config = load_search(run_file, search_file, overrides, lambda text: progress({"kind": "note", "text": text}))
        result = run_search(config, search_file.name.removesuffix(".yaml"), progress, arguments.verbose)
    show(result)


def show_folder(path: Path) -> None:
    """Print the trials of a search, which may run or be unfinished."""
    from distrec.cli.progress import results_table
    from distrec.tuning.trial_table import search_table

    results_table(search_table(path))


def show(result: Any) -> None:
    """Print the best configuration and its test metrics."""
    from distrec.cli.progress import results_table
    from distrec.tuning.folder import BEST_CONFIG
    from distrec.tuning.trial_table import short, trial_rows

    results_table(trial_rows(result.trials, result.metric)[:10])
    print(f"best validation {result.metric} {result.value:.4f} at epoch {result.epochs}, with")
    for key, value in result.values.items():
        print(f"  {key}={short(value)}")
    if result.metrics:
        rows = [{"metric": key, **_spread([m[key] for m in result.metrics])} for key in result.metrics[0]]
        results_table(rows)
    print(f"search folder  {result.folder}")
    print(f"train it again  {shlex.join(['distrec', 'train', str(result.folder / BEST_CONFIG)])}")


def _spread(values: list[float]) -> dict[str, float | int]:
    """Return the mean, and for several values their standard deviation and number."""
    if len(values) == 1:
        return {"value": values[0]}
    return {"mean": statistics.fmean(values), "deviation": statistics.stdev(values), "seeds": len(values)}
