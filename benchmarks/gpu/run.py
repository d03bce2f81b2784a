"""Measure training steps on a GPU: checks, whole steps beside their bars, parts of a step, plain PyTorch, large tables.

    python -m benchmarks.gpu.run

Results are written to $OUT/gpu.json (default: ./gpu.json) after each section. A time is the median of 15 groups of
replays of a CUDA graph, in ms a step; plain PyTorch runs without a graph, 5 groups. Without a GPU, under
TRITON_INTERPRET=1, everything runs once at tiny sizes, to test this script.
"""

import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import triton

from distrec.sampling.negatives import NegativeSampler

from . import synthetic
from .checks import graph_of, masses, run_checks
from .draws import DeviceSampler, to_device
from .plain import plain_step
from .step import STEPS, Interactions, SharedSoftmax, Step, Table, coefficients

GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"
START = time.time()
USERS, ITEMS, COUNT = synthetic.GOWALLA if GPU else (12, 41, 90)
LARGE = (1_000_000, 2_000_000) if GPU else (30, 100)
DIM = 64 if GPU else 8
COUNTED_STEPS = 2**15  # coefficients: more than all replays of one step

Shape = tuple[str, int, int]  # kind, pairs, negatives
# Milliseconds a step to stay below on an H100, with exclusion and exact draws.
BARS: dict[Shape, float] = {
    ("softmax", 1024, 800): 0.5,
    ("softmax", 8192, 800): 2.0,
    ("softmax", 8192, 64): 0.35,
    ("bpr", 8192, 1): 0.25,
    ("shared", 2048, 800): 0.3,
    ("exact", 1024, 0): 1.3,
}
results: dict[str, Any] = {"times": []}


def measure(launch: Callable[[], object], capture: bool = True, budget_ms: float = 250.0) -> list[float]:
    """Return the milliseconds of a launch, for each group of replays."""
    if not GPU:
        launch()
        return [0.0]
    for _ in range(3):
        launch()
    replay = graph_of(launch) if capture else launch
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def group(size: int) -> float:
        start.record()
        for _ in range(size):
            replay()
        end.record()
        torch.cuda.synchronize()
        return start.elapsed_time(end) / size

    size = int(max(1, min(40, budget_ms / 15 / max(min(group(3), group(3)), 1e-3))))
    return [group(size) for _ in range(15 if capture else 5)]


def report(section: str, shape: Shape, name: str, launch: Callable[[], object], **options: Any) -> dict[str, Any]:
    """Measure, print and keep one time."""
    times = measure(launch, **options)
    row = dict(zip(("section", "kind", "B", "N", "name"), (section, *shape, name), strict=True))
    row |= {"ms": statistics.median(times), "ms_min": min(times), "ms_max": max(times)}
    results["times"].append(row)
    spread = f"{row['ms']:.4f} ms ({row['ms_min']:.4f} to {row['ms_max']:.4f})"
    print(f"[{time.time() - START:6.1f}] {section:6} {shape[0]} B {shape[1]} N {shape[2]} {name}: {spread}", flush=True)
    return row


@cache
def interactions(users: int, items: int) -> tuple[np.ndarray, np.ndarray]:
    """Return interactions of the size of Gowalla, ids spread over so many users and items."""
    user_E, item_E = synthetic.interactions(USERS, ITEMS, COUNT)
    return user_E * (users // USERS), item_E * (items // ITEMS)


@cache
def sampler(users: int, items: int, law: str, exclude: bool, half_words: bool | None = None) -> DeviceSampler:
    """Return the sampler of negatives; `law` is uniform or popularity."""
    user_E, item_E = interactions(users, items)
    positives = synthetic.csr(users, user_E, item_E) if exclude else None
    return to_device(NegativeSampler(masses(law, items, item_E, users), positives), 1, DEVICE, half_words)


@cache
def device_data(users: int, items: int, pairs: int) -> Interactions:
    """Return interactions in steps of `pairs`."""
    return Interactions.of(*interactions(users, items), pairs, 0, DEVICE)


@cache
def step_coefficients() -> torch.Tensor:
    """Return the optimizer's coefficients of all steps."""
    return torch.from_numpy(coefficients(1e-3, 1e-2, COUNTED_STEPS)).float().to(DEVICE)


def scaled(shape: Shape) -> Shape:
    """Return a shape, tiny without a GPU."""
    return shape if GPU else (shape[0], max(4, shape[1] // 800), -(-shape[2] // 100))


def make(
    shape: Shape,
    rows: tuple[int, int] = (USERS, ITEMS),
    law: str = "uniform",
    half_words: bool | None = None,
    listed: bool = False,
) -> Step:
    """Return the step of a shape, with exclusion. `rows`: numbers of users and of items."""
    kind, pairs, n = scaled(shape)
    (users, items), data = rows, device_data(*rows, pairs)
    indptr, indices = (torch.from_numpy(a).to(DEVICE) for a in synthetic.csr(users, *interactions(users, items)))
    draws = sampler(users, items, law, kind in ("softmax", "bpr"), half_words)
    table = Table.of(0.1 * torch.randn(users + items, DIM, device=DEVICE))
    options: dict[str, Any] = {"listed": listed, "positives": (indptr, indices) if kind == "shared" else None}
    return STEPS[kind](data, table, draws, users, pairs, n, step_coefficients(), **options)


def whole(shape: Shape) -> None:
    """Measure a whole step beside its bar, then with a list of touched rows and with other draws."""
    step = make(shape)
    row = report("whole", shape, "sweep over all rows", step)
    assert np.isfinite(step.batch.loss_B.mean().item())
    row |= {"bar": BARS[shape], "met": row["ms"] <= BARS[shape]}
    report("whole", shape, "list of touched rows", make(shape, listed=True))
    if shape[0] in ("softmax", "bpr"):
        report("whole", shape, "draws of 53 bits", make(shape, half_words=False))
        report("whole", shape, "draws by popularity", make(shape, law="popularity"))


def parts(shape: Shape) -> None:
    """Measure the parts of a step, each as a graph of its own; the step counter stands still."""
    step = make(shape)
    step()

    def gather_and_list() -> None:
        """List rows after the reset of their count: without it, each replay would write past the last's rows."""
        step.gather()
        step.list_rows()

    report("part", shape, "gather positives", step.gather)
    if isinstance(step, SharedSoftmax):
        report("part", shape, "draws", step.draw)
    report("part", shape, "draws, scores and gradients", step.scores)
    report("part", shape, "optimizer, sweep over all rows", step.optimize)
    report("part", shape, "gather positives, list touched rows", gather_and_list)
    step.listed = True
    report("part", shape, "optimizer, list of touched rows", step.optimize)
    report("part", shape, "advance", step.advance)


def plain(shape: Shape) -> None:
    """Measure plain PyTorch."""
    kind, pairs, n = scaled(shape)
    for sparse in (True, False) if kind != "exact" else (False,):
        step = plain_step(kind, device_data(USERS, ITEMS, pairs), (USERS, ITEMS), pairs, n, DIM, sparse)
        report("plain", shape, "SparseAdam" if sparse else "fused Adam", step, capture=False, budget_ms=400.0)


def large(shape: Shape) -> None:
    """Measure tables of millions of rows, of which a step touches few; draws of 53 bits."""
    for listed, name in ((False, "sweep over all rows"), (True, "list of touched rows")):
        report("large", shape, f"{LARGE[0]} users, {LARGE[1]} items, {name}", make(shape, LARGE, listed=listed))


def main() -> None:
    """Run all sections."""
    torch.set_float32_matmul_precision("highest")
    torch.manual_seed(0)
    name = torch.cuda.get_device_name() if GPU else platform.processor()
    versions = f"Python {platform.python_version()}, torch {torch.__version__}, Triton {triton.__version__}"
    results["machine"] = f"{name}, {versions}, numpy {np.__version__}"
    print(results["machine"], flush=True)
    results["checks"] = run_checks(DEVICE, large=GPU)
    for section in (whole, parts, plain, large):
        for shape in BARS if section is not large else [("softmax", 1024, 800), ("softmax", 8192, 64)]:
            section(shape)
            results["seconds"] = round(time.time() - START, 1)
            (Path(os.environ.get("OUT", ".")) / "gpu.json").write_text(json.dumps(results, indent=1))
    for row in results["times"]:
        if "bar" in row:
            verdict = "met" if row["met"] else "MISSED"
            print(f"{row['kind']} B {row['B']} N {row['N']}: {row['ms']:.4f} ms, bar {row['bar']}, {verdict}")
    failed = [line for passed, line in results["checks"] if not passed]
    print(f"{len(results['checks'])} checks, failed: {failed}")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
