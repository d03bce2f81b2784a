"""Compare two checkouts bit by bit: losses, tables, optimizer state and metrics of one worker on the CPU.

Each checkout trains the cases of its own `tests/**/test_workers.py` for 20 steps on the data of its own
`tests/conftest.py`, in a process of its own; the results are compared bit by bit.

    python benchmarks/equality.py OLD NEW
    CASES="bpr_pairs dense_adam" python benchmarks/equality.py OLD NEW

Prints one line a case and exits with 1 if any differs. It takes about a minute.
"""

import importlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch


def test_record(small: Any, dataset: Any, tmp_path: Path) -> None:
    """Train the cases of the checkout on `sys.path` and save what came of them to $EQUALITY_OUT (run by pytest)."""
    (file,) = Path.cwd().glob("tests/*/test_workers.py")
    workers = importlib.import_module(f"tests.{file.parent.name}.test_workers")
    changed = importlib.import_module("tests.conftest").changed
    chosen = os.environ.get("CASES", "").split() or list(workers.CASES)
    configs = {name: changed(small, **workers.CASES[name]) for name in chosen}
    results = workers.train_and_save(configs, dataset, tmp_path)
    record = {}
    for name, (losses, metrics, users) in results.items():
        (shard,) = tmp_path.glob(f"{name}/1/shard-*.pt")
        tables = torch.load(shard, weights_only=True)["tables"]
        arrays = {f"{table}.{key}": value for table, rows in tables.items() for key, value in rows.items()}
        record[name] = {"losses": losses, "metrics": metrics, "users": users, **arrays}
    torch.save(record, os.environ["EQUALITY_OUT"])


def record(checkout: Path, out: Path) -> dict[str, dict[str, object]]:
    """Return what `test_record` saves in a checkout, by case."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "tests.conftest", "-p", "no:cacheprovider"]
    subprocess.run(
        [*command, "--rootdir", str(checkout), "--confcutdir", str(checkout), str(Path(__file__).resolve())],
        cwd=checkout,
        env=os.environ | {"PYTHONPATH": str(checkout), "EQUALITY_OUT": str(out)},
        check=True,
    )
    return torch.load(out, weights_only=False)


def differences(old: dict[str, object], new: dict[str, object]) -> list[str]:
    """Return the names of the results that are not the same bits, those of losses with the largest difference."""
    names = sorted(old.keys() | new.keys())
    return [name + _relative(old.get(name), new.get(name)) for name in names if not _same(old.get(name), new.get(name))]


def _same(a: object, b: object) -> bool:
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    return a == b


def _relative(old: object, new: object) -> str:
    if not (isinstance(old, list) and isinstance(new, list) and len(old) == len(new)):
        return ""
    return f" by {max(abs(a - b) / abs(a) for a, b in zip(old, new, strict=True)):.1e}, relative"


def main() -> None:
    """Compare the two checkouts named on the command line."""
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    with tempfile.TemporaryDirectory() as folder:
        old, new = (record(Path(path).resolve(), Path(folder, f"{k}.pt")) for k, path in enumerate(sys.argv[1:]))
    wrong = {name: differences(old.get(name, {}), new.get(name, {})) for name in sorted(old.keys() | new.keys())}
    for name, found in wrong.items():
        print(f"{name:<24} {'equal' if not found else 'differs: ' + ', '.join(found)}")
    sys.exit(any(wrong.values()))


if __name__ == "__main__":
    main()
