"""`distrec recommend`: all users beside implicit's `recommend` on the same factors, one user beside `import torch`.

    python benchmarks/recommend.py --rivals .venv-rivals/bin/python
    python benchmarks/recommend.py --rivals .venv-rivals/bin/python --source path/to/ml-1m --quick

The run is written here: factors of two iterations of iALS, as a checkpoint that `distrec train` would leave. Its
rankings for all users include the file that is written, and leave out the start of Python and the loading of the run.
"""

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from measure.data import source_settings
from measure.rival import open_rival
from report import Row, arguments, bar_row, ratios, report

from distrec.data.dataset import Part
from distrec.serve.everyone import recommend_all
from distrec.serve.recommender import Recommender, load_model
from distrec.testing.local_run import train_locally
from distrec.training.config import load_config

_K, _MOST_ALL, _MOST_USER_S = 20, 3.0, 1.5
# Prints the seconds of `import torch` and of the command after it, without Ray.
_ONE_USER = """
import sys, time
start = time.perf_counter()
import torch
loaded = time.perf_counter()
from distrec.cli.main import main
main(["recommend", {run!r}, "--user", {user!r}])
print(loaded - start, time.perf_counter() - loaded, "ray" in sys.modules, file=sys.stderr)
"""


def all_users(model: Recommender, folder: Path, python: Path, repeats: int) -> list[Row]:
    """Interleave both, after a check that their lists agree."""
    found: dict[str, list[float]] = {"implicit": [], "distrec": []}
    _write_inputs(model, folder)
    out = folder / "recs.parquet"
    with open_rival(python, "implicit_recommend.py", [str(folder), str(_K)]) as rival:
        recommend_all(model, out, _K)
        _check(model, out, np.load(folder / "lists.npz")["lists"])
        for _ in range(repeats):
            found["implicit"].append(rival.seconds())
            found["distrec"].append(_seconds(lambda: recommend_all(model, out, _K)))
        rows = [bar_row(f"all users: {name}", values, "s") for name, values in found.items()]
        against = ratios(found["distrec"], found["implicit"])
        return [*rows, bar_row("all users: distrec / implicit", against, "x", _MOST_ALL, packages=rival.versions)]


def one_user(model: Recommender, repeats: int) -> list[Row]:
    """Measure processes that recommend to one user."""
    torch_s, beyond_s = [], []
    code = _ONE_USER.format(run=str(model.folder.path), user=str(model.users.ids[0]))
    for _ in range(repeats + 1):  # the first reads the files of the packages
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        loaded, beyond, has_ray = done.stderr.strip().splitlines()[-1].split()
        assert has_ray == "False", "Ray was imported"
        torch_s.append(float(loaded))
        beyond_s.append(float(beyond))
    return [
        bar_row("one user: import torch", torch_s[1:], "s"),
        bar_row("one user: beyond import torch", beyond_s[1:], "s", most=_MOST_USER_S),
    ]


def _write_inputs(model: Recommender, folder: Path) -> None:
    users, items = (vectors.numpy() for vectors in (model.user_vectors(), model.item_vectors()))
    np.savez(folder / "factors.npz", users=users, items=items)
    buckets = range(model.dataset.manifest.buckets)
    parts = [model.dataset.interactions(part, buckets) for part in Part]
    user, item = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    np.savez(folder / "seen.npz", user=user, item=item)


def _check(model: Recommender, out: Path, lists: np.ndarray) -> None:
    table = pq.read_table(out)
    found = model.items.codes(table["item"].to_pylist()).reshape(-1, _K)
    same = np.mean([len(np.intersect1d(a, b)) for a, b in zip(found, lists, strict=True)]) / _K
    assert same > 0.999, f"the two rank differently: {same:.2%} of the items in the lists agree"


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> None:
    parser = arguments(__doc__ or "")
    parser.add_argument("--rivals", type=Path, required=True, help="Python of the environment with implicit")
    parser.add_argument("--source", help="data to use instead of Gowalla, as data.source")
    options = parser.parse_args()
    name, settings = source_settings()
    if options.source:
        name, settings = Path(options.source).name, [f"data.source={options.source}", "data.test_fraction=0.1"]
    repeats = 3 if options.quick else 9
    with tempfile.TemporaryDirectory() as folder:
        words = [*settings, "model.name=ials", "model.dim=64", "train.epochs=2", "train.workers=1", "eval.every=0"]
        words += [f"data.cache={folder}/cache", "data.valid_fraction=0", "eval.untrained_items=include"]
        config = load_config(None, words)
        train_locally(config, Path(folder, "run"))
        model = load_model(Path(folder, "run"))
        rows = all_users(model, Path(folder), options.rivals.absolute(), repeats) + one_user(model, repeats)
    report(rows, f"Recommendations on {name}: {len(model.users):,} users, {len(model.items):,} items", options.json)


if __name__ == "__main__":
    main()
