"""Compare the speed and memory of two checkouts of distrec: training steps without Ray, the ranking of all users.

    python benchmarks/checkouts.py OLD NEW
    python benchmarks/checkouts.py OLD NEW --rounds 15 --only bpr,ranking --patience 60

For each row one process of each checkout is kept alive; they take turns (old, new, new, old, ...), and one is idle
while the other is measured. A measurement is the median of 40 steps (of the exact softmax 10), or one ranking. The
ratio of a row is the median over rounds of the ratio within a round, which cancels changes in the machine's speed that
last longer than a round. Memory is the peak of the process.

Both checkouts use this Python environment, Gowalla (DISTREC_DATA names the folder that holds gowalla/; without it,
synthetic data of that size), and torch's and numba's default number of threads.
"""

import argparse
import contextlib
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from cases import bpr, exact_softmax, sampled_softmax
from measure.cpu_load import undisturbed
from measure.data import source_settings
from measure.rival import Rival
from report import Row, add_patience, arguments, bar_row, heading, ratios, table, write

from distrec.tracking.environment import git_commit

_K, _STEPS, _QUICK_STEPS = 20, 40, 5
_IDLE_S = 0.5  # threads of OpenMP spin for up to 0.2 s after their last work: the next measurement starts later
_SCRIPT = Path(__file__).parent / "rivals" / "checkout.py"
ROWS = {
    "bpr": ("BPR, 1 negative, batch 8192: step", bpr.SETTINGS),
    "pairs": ("softmax, 800 a pair, batch 1024: step", [*sampled_softmax.SETTINGS, "sampling.shared=false"]),
    "shared": ("softmax, 800 shared, batch 1024: step", [*sampled_softmax.SETTINGS, "sampling.shared=true"]),
    "exact": ("exact softmax, batch 1024: step", exact_softmax.SETTINGS),
    "ranking": (f"ranking of all users, K = {_K}", []),
}


def compare(
    key: str, checkouts: dict[str, Path], folder: Path, rounds: int, steps: int, patience_s: float
) -> list[Row]:
    """Return the rows of one comparison: old, new, and their ratio. Times are in milliseconds."""
    name, settings = ROWS[key]
    found: dict[str, list[float]] = {"old": [], "new": []}
    others: list[float] = []
    steps = max(1, steps // 4) if key == "exact" else steps  # each takes as long as many of the others
    kind = ["ranking", str(_K)] if key == "ranking" else ["steps", str(steps)]
    with contextlib.ExitStack() as stack:
        order = [
            (which, stack.enter_context(_server(checkout, folder / which, kind, settings)))
            for which, checkout in checkouts.items()
        ]
        for _ in range(rounds):
            for which, server in order:
                time.sleep(_IDLE_S)
                seconds, share = undisturbed(server.seconds, patience_s)
                found[which].append(seconds * 1e3)
                others.append(share)
            order.reverse()
        memory = {which: [server.peak_mib()] for which, server in order}
    rows = [bar_row(f"{name}, {which}", values, "ms") for which, values in found.items()]
    ratio = bar_row(f"{name}, new / old", ratios(found["new"], found["old"]), "x")
    print(f"{key}: other processes used {statistics.median(others):.0%} of the cores", file=sys.stderr)
    rows += [ratio, bar_row(f"{name}: peak memory, new", memory["new"], "MiB")]
    return [*rows, bar_row(f"{name}: peak memory, new / old", ratios(memory["new"], memory["old"]), "x")]


def _server(checkout: Path, folder: Path, kind: list[str], settings: list[str]) -> Rival:
    """Return the process of one checkout, to be opened by `with`; its prepared data are cached in `folder`."""
    folder.mkdir(exist_ok=True)
    given = [*source_settings()[1], f"data.cache={folder}/prepared", "train.workers=1", *settings]
    arguments = [str(folder), str(checkout), *kind, *given]
    return Rival(Path(sys.executable), _SCRIPT, arguments, {"PYTHONPATH": str(checkout)})


def _describe(checkout: Path) -> str:
    commit = git_commit(checkout)
    return f"{checkout} ({commit[:12]}{'-dirty' * commit.endswith('-dirty')})" if commit else str(checkout)


def _keys(text: str) -> list[str]:
    """Parse the argument of --only."""
    if wrong := [key for key in text.split(",") if key not in ROWS]:
        raise argparse.ArgumentTypeError(f"unknown: {', '.join(wrong)}; known: {', '.join(ROWS)}")
    return text.split(",")


def main() -> None:
    """Run the comparison by the command line."""
    parser = arguments("Compare the speed of two checkouts of distrec.")
    parser.add_argument("old", type=Path, metavar="OLD", help="folder of the checkout to compare with")
    parser.add_argument("new", type=Path, metavar="NEW", help="folder of the other checkout")
    parser.add_argument("--rounds", type=int, default=7, help="rounds of each row (default: %(default)s)")
    parser.add_argument("--only", type=_keys, default=list(ROWS), metavar="KEY,KEY", help=f"rows: {', '.join(ROWS)}")
    add_patience(parser)
    given = parser.parse_args()
    rounds, steps = (1, _QUICK_STEPS) if given.quick else (given.rounds, _STEPS)
    checkouts = {"old": given.old.resolve(), "new": given.new.resolve()}
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        for key in given.only:
            found = compare(key, checkouts, Path(folder), rounds, steps, given.patience)
            if not rows:
                title = f"old: {_describe(checkouts['old'])}; new: {_describe(checkouts['new'])}"
                print(heading(f"{title}\n{source_settings()[0]}, {rounds} rounds", found))
            table(found)
            sys.stdout.flush()
            rows += found
            write(rows, given.json)


if __name__ == "__main__":
    main()
