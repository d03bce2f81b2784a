"""Measure training steps on a GPU with the project's draws: checks, whole steps, parts, variants, plain PyTorch.

    PYTHONPATH=. python3 -m benchmarks.gpu.run

Results go to $OUT/gpu.json (or ./gpu.json), rewritten after each section. Times are milliseconds of a step (or part) as
a CUDA graph: the median of groups of replays, each group timed with events. Without a GPU, under TRITON_INTERPRET=1,
everything runs once at tiny sizes, to test this script.
"""

import gc
import json
import os
import platform
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import torch
import triton

from . import made
from .checks import all_checks, graph_of
from .draws import SamplerTables, sampler_tables
from .oracle import NEGATIVES
from .plain import plain_step
from .step import BPR, ExactSoftmax, Interactions, SampledSoftmax, SharedSoftmax, Step, Tables, coefficients

GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"
BEGAN = float(os.environ.get("GPU_RUN_BEGAN", time.time()))
RESULTS = Path(os.environ.get("OUT", ".")) / "gpu.json"
LIMIT, CHECKS_LIMIT = 215, 100  # seconds: no section begins after the first, no check after the second
USERS, ITEMS, COUNT = made.GOWALLA if GPU else (12, 41, 90)
DIM = 64 if GPU else 8
LARGE = (1_000_000, 2_000_000) if GPU else (30, 100)
STEPS = 2**15  # rows of the table of coefficients: more than all replays of one step
SHRINK = 1 if GPU else 800

# (kind, B, N): milliseconds to stay below on an H100, with exclusion and exact draws
BARS = {
    ("softmax", 1024, 800): 0.5,
    ("softmax", 8192, 800): 2.0,
    ("softmax", 8192, 64): 0.35,
    ("bpr", 8192, 1): 0.25,
    ("shared", 2048, 800): 0.3,
    ("exact", 1024, 0): 1.3,
}
results: dict = {"times": [], "checks": [], "errors": []}
current = [0]  # number of the section that runs


def say(*words: object) -> None:
    """Print with the seconds since the start."""
    print(f"[{time.time() - BEGAN:6.1f}]", *words, flush=True)


def save() -> None:
    """Write all results so far."""
    results["seconds"] = round(time.time() - BEGAN, 1)
    RESULTS.write_text(json.dumps(results, indent=1))


@contextmanager
def guarded(name: str) -> Iterator[None]:
    """Keep an error from ending the run; free memory afterwards."""
    try:
        yield
    except Exception as error:
        say("ERROR", name, type(error).__name__, str(error)[:500])
        traceback.print_exc(limit=6)
        results["errors"].append({"name": name, "error": f"{type(error).__name__}: {error}"[:2000]})
    gc.collect()
    try:
        if GPU:
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
    except Exception as error:  # an error of the device ends this process's use of it
        results["errors"].append({"name": name, "error": f"device lost: {error}"[:2000]})
        restart()
    save()


def restart() -> None:
    """Go on with the next section in a new process, with the results so far."""
    save()
    say("RESTART: the device reported an error; the next section runs in a new process")
    following = {"GPU_RUN_FROM": str(current[0] + 1), "GPU_RUN_BEGAN": str(BEGAN)}
    os.execve(sys.executable, [sys.executable, "-m", "benchmarks.gpu.run"], os.environ | following)


def measure(launch: Callable[[], object], capture: bool = True, budget_ms: float = 250.0) -> tuple[float, float, float]:
    """Return (median, least, greatest) milliseconds of a launch over groups of replays."""
    if not GPU:
        launch()
        return 0.0, 0.0, 0.0
    for _ in range(3):
        launch()
    replay = graph_of(launch) if capture else launch
    events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]

    def group(size: int) -> float:
        events[0].record()
        for _ in range(size):
            replay()
        events[1].record()
        torch.cuda.synchronize()
        return events[0].elapsed_time(events[1]) / size

    rough = min(group(3), group(3))
    size = int(max(1, min(40, budget_ms / 15 / max(rough, 1e-3))))
    taken = [group(size) for _ in range(15 if capture else 5)]
    return statistics.median(taken), min(taken), max(taken)


def report(section: str, shape: tuple[str, int, int], name: str, launch: Callable[[], object], **options) -> float:
    """Measure, print and keep one time."""
    median, least, greatest = measure(launch, **options)
    kind, pairs, n = shape
    results["times"].append(
        dict(section=section, kind=kind, B=pairs, N=n, name=name, ms=median, ms_min=least, ms_max=greatest)
    )
    say(f"{section:9} {kind} B {pairs} N {n} {name}: {median:.4f} ms ({least:.4f} .. {greatest:.4f})")
    return median


@cache
def interactions() -> tuple[np.ndarray, np.ndarray]:
    """Return the interactions that all measurements share."""
    return made.interactions(USERS, ITEMS, COUNT)


@cache
def positives() -> tuple[np.ndarray, np.ndarray]:
    """Return CSR of each user's items."""
    return made.csr(USERS, *interactions())


@cache
def sampler(law: str, exclude: bool, halves: bool | None = None) -> SamplerTables:
    """Return sampling tables: law is uniform or popularity."""
    mass_V = np.ones(ITEMS, np.int64)
    if law == "popularity":
        mass_V = made.popularity_masses(ITEMS, interactions()[1], 0.75, USERS)
    return sampler_tables(mass_V, positives() if exclude else None, 1, NEGATIVES, DEVICE, halves)


@cache
def resident(pairs: int) -> Interactions:
    """Return resident interactions in steps of `pairs`."""
    return Interactions.of(USERS, ITEMS, *interactions(), pairs, 0, DEVICE)


@cache
def step_coefficients() -> torch.Tensor:
    """Return the optimizer's coefficients of all steps, with full decoupled decay."""
    return torch.from_numpy(coefficients(1e-3, 1e-2, STEPS)).float().to(DEVICE)


@cache
def known() -> tuple[torch.Tensor, torch.Tensor]:
    """Return CSR of each user's items on the device."""
    indptr, items = (torch.from_numpy(np.asarray(a, np.int64)).to(DEVICE) for a in positives())
    return indptr, items


def make(
    shape: tuple[str, int, int], law: str = "uniform", exclude: bool = True, halves: bool | None = None, **options
) -> Step:
    """Make the step of a shape."""
    kind, pairs, n = shape[0], max(4, shape[1] // SHRINK), max(1, shape[2] // (SHRINK // 8 or 1))
    x_VD = 0.1 * torch.randn(USERS + ITEMS, DIM, device=DEVICE)
    excluded = exclude and kind in ("softmax", "bpr")
    arguments = (resident(pairs), Tables(x_VD), sampler(law, excluded, halves), pairs, step_coefficients())
    if kind == "softmax":
        return SampledSoftmax(*arguments, negatives=n, fused=options.pop("fused", True), **options)
    if kind == "bpr":
        return BPR(*arguments, fused=options.pop("fused", True), **options)
    if kind == "shared":
        return SharedSoftmax(*arguments, negatives=n, known=known() if exclude else None, **options)
    return ExactSoftmax(*arguments, **options)


def one_check(name: str, check: Callable[[], str]) -> None:
    """Run a check and keep what it says."""
    if time.time() - BEGAN > CHECKS_LIMIT:
        say("SKIPPED, out of time:", name)
        results["checks"].append({"name": name, "ok": None})
        return
    try:
        line, ok = check(), True
    except Exception as error:
        line, ok = f"{name}: {type(error).__name__}: {str(error)[:400]}", False
    say("ok   " if ok else "FAIL ", line)
    results["checks"].append({"name": name, "ok": ok, "line": line})


def whole(shape: tuple[str, int, int]) -> None:
    """Measure a whole step with exclusion on, against its bar."""
    step = make(shape)
    ms = report("whole", shape, "fused draws, exclusion", step)
    loss = step.loss_B.mean().item()
    assert np.isfinite(loss), loss
    results["times"][-1].update(bar=BARS[shape], ok=ms <= BARS[shape], loss=loss)
    say(f"          bar {BARS[shape]} ms: {'met' if ms <= BARS[shape] else 'MISSED'}, loss {loss:.4f}")


VARIANTS = {
    "softmax": {
        "fused draws, no exclusion": {"exclude": False},
        "separate draws, exclusion": {"fused": False},
        "separate draws, no exclusion": {"fused": False, "exclude": False},
        "fused draws, exclusion, all rows normalised each step": {"keep_norm": False},
        "fused draws, exclusion, list of touched rows": {"listed": True},
        "fused draws of 53 bits, exclusion": {"halves": False},
        "fused draws by popularity, exclusion": {"law": "popularity"},
        "separate draws by popularity, exclusion": {"law": "popularity", "fused": False},
    },
    "bpr": {
        "fused draws, no exclusion": {"exclude": False},
        "separate draws, exclusion": {"fused": False},
        "fused draws, exclusion, list of touched rows": {"listed": True},
        "fused draws by popularity, exclusion": {"law": "popularity"},
        "fused draws, exclusion, 32 pairs a program": {"block": 32},
        "fused draws, exclusion, 8 pairs a program": {"block": 8},
    },
    "shared": {"no exclusion": {"exclude": False}, "exclusion, list of touched rows": {"listed": True}},
    "exact": {"bounded by 1 / temperature": {"bounded": True}},
}


def variants(shape: tuple[str, int, int]) -> None:
    """Measure other ways to take the same step."""
    for name, options in VARIANTS[shape[0]].items():
        with guarded(f"{shape} {name}"):
            report("variant", shape, name, make(shape, **options))


def parts(shape: tuple[str, int, int]) -> None:
    """Measure the parts of a step, each as a graph of its own; the counter stands still."""
    step = make(shape)
    step()
    report("part", shape, "gather positives", step.gather)
    if isinstance(step, SampledSoftmax | BPR):
        report("part", shape, "draws alone, exclusion", step.draw_separately)
        report("part", shape, "scores and gradients, fused draws", step.scores)
        step.fused = False
        report("part", shape, "scores and gradients, given draws", step.scores)
    else:
        if isinstance(step, SharedSoftmax):
            report("part", shape, "draws", step.draw)
        report("part", shape, "scores and gradients", step.scores)
    if isinstance(step, SampledSoftmax):
        step.scatter = False
        report("part", shape, "scores, no gradients of negatives", step.scores)
    if step.cosine:
        report("part", shape, "normalisation of all rows", step.normalize)
    report("part", shape, "optimizer, sweep over all rows", step.optimize)
    report("part", shape, "list of touched rows", step.compact)
    step.listed = True
    report("part", shape, "optimizer, list of touched rows", step.optimize)
    report("part", shape, "advance", step.advance)


def draws_alone(shape: tuple[str, int, int]) -> None:
    """Measure the drawing program by distribution and exclusion."""
    for law, exclude, halves in (
        ("uniform", False, None),
        ("uniform", True, None),
        ("uniform", True, False),
        ("popularity", False, None),
        ("popularity", True, None),
    ):
        step = make(shape, law=law, exclude=exclude, halves=halves, fused=False)
        step.gather()
        bits = 32 if step.sampler.halves else 53
        report("draws", shape, f"{law}, {bits} bits, exclusion {exclude}", step.draw_separately)


def tuning(shape: tuple[str, int, int]) -> None:
    """Measure other shapes of the fused program."""
    for chunk, warps in ((16, 1), (16, 2), (32, 2), (64, 4), (64, 8)):
        with guarded(f"tuning {shape} {chunk} {warps}"):
            report("tuning", shape, f"chunk {chunk}, warps {warps}", make(shape, chunk=chunk, warps=warps))


def tensor_float(shape: tuple[str, int, int]) -> None:
    """Measure the exact softmax with tf32 products: NOT the project's precision, for comparison only."""
    torch.set_float32_matmul_precision("high")
    try:
        report("tf32", shape, "tf32 products, bounded", make(shape, bounded=True))
    finally:
        torch.set_float32_matmul_precision("highest")


def plain(shape: tuple[str, int, int]) -> None:
    """Measure plain PyTorch at a shape."""
    kind, pairs, n = shape[0], max(4, shape[1] // SHRINK), max(1, shape[2] // (SHRINK // 8 or 1))
    for sparse in (True, False) if kind != "exact" else (False,):
        with guarded(f"plain {shape} sparse={sparse}"):
            step = plain_step(kind, resident(pairs), pairs, n, DIM, sparse)
            name = "plain PyTorch, SparseAdam" if sparse else "plain PyTorch, fused Adam"
            report("plain", shape, name, step, capture=False, budget_ms=400.0)


def large_tables() -> None:
    """Measure tables of millions of rows, where rows that a step does not touch must cost nothing; 53-bit draws."""
    users, items = LARGE
    user_E, item_E = interactions()
    user_E, item_E = user_E * (users // USERS), item_E * (items // ITEMS)
    tables = sampler_tables(np.ones(items, np.int64), made.csr(users, user_E, item_E), 1, NEGATIVES, DEVICE)
    for _, pairs, n in (("softmax", 1024, 800), ("softmax", 8192, 64)):
        small_pairs, small_n = max(4, pairs // SHRINK), max(1, n // (SHRINK // 8 or 1))
        data = replace(resident(small_pairs), users=users, items=items)
        data.user_E, data.item_E = (torch.from_numpy(a.astype(np.int32)).to(DEVICE) for a in (user_E, item_E))
        x_VD = 0.1 * torch.randn(users + items, DIM, device=DEVICE)
        for name, options in {"sweep over all rows": {}, "list of touched rows": {"listed": True}}.items():
            step = SampledSoftmax(
                data,
                Tables(x_VD),
                tables,
                small_pairs,
                step_coefficients(),
                negatives=small_n,
                fused=True,
                **options,
            )
            report("large", ("softmax", pairs, n), f"{users} users, {items} items, {name}", step)
            del step
            gc.collect()


def main() -> None:
    """Run all sections."""
    begin = int(os.environ.get("GPU_RUN_FROM", 0))
    if begin:
        results.update(json.loads(RESULTS.read_text()))
    torch.set_float32_matmul_precision("highest")
    torch.manual_seed(0)
    name = torch.cuda.get_device_name() if GPU else platform.processor()
    versions = f"python {platform.python_version()}, torch {torch.__version__}, triton {triton.__version__}"
    results["machine"] = {"device": name, "versions": versions, "numpy": np.__version__}
    say(name, versions, "numpy", np.__version__)
    with guarded("data"):
        degree_U = np.diff(positives()[0])
        say(f"{COUNT} interactions, of a user {degree_U.mean():.1f} on average, at most {degree_U.max()}")
    shapes = list(BARS)
    sections: list[tuple[str, Callable[[], None]]] = [
        (name, lambda name=name, check=check: one_check(name, check)) for name, check in all_checks(DEVICE, large=GPU)
    ]
    sections += [(f"whole {s}", lambda s=s: whole(s)) for s in shapes]
    sections += [(f"parts {s}", lambda s=s: parts(s)) for s in shapes]
    sections += [(f"variants {s}", lambda s=s: variants(s)) for s in shapes]
    sections += [("draws", lambda: draws_alone(shapes[1]))]
    sections += [(f"tuning {s}", lambda s=s: tuning(s)) for s in shapes[:3]]
    sections += [(f"plain {s}", lambda s=s: plain(s)) for s in shapes]
    sections += [("large tables", large_tables), ("tf32", lambda: tensor_float(shapes[5]))]
    for current[0], (section, run) in list(enumerate(sections))[begin:]:
        if time.time() - BEGAN > LIMIT:
            say("SKIPPED, out of time:", section)
            results["errors"].append({"name": section, "error": "skipped, out of time"})
            continue
        with guarded(section):
            run()
    save()
    say("summary")
    for row in results["times"]:
        if "bar" in row:
            verdict = "met" if row["ok"] else "MISSED"
            say(f"{row['kind']} B {row['B']} N {row['N']}: {row['ms']:.4f} ms, bar {row['bar']}, {verdict}")
    states = [c["ok"] for c in results["checks"]]
    say("failed checks:", [c["line"] for c in results["checks"] if c["ok"] is False])
    say(f"checks: {states.count(True)} ok, {states.count(False)} failed, {states.count(None)} skipped")
    say(f"errors: {[e['name'] for e in results['errors']]}")
    sys.exit(1 if states.count(False) or results["errors"] else 0)


if __name__ == "__main__":
    main()
