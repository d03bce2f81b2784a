"""The cost of full-table weight decay: a step, by scope and size of the table, beside torch's own optimizers.

    python benchmarks/optimizer.py --plot optimizer.png

The scopes are interleaved on one table with one pair of moments, so that they find the same memory in the same state,
and load by other processes affects them alike. Ratios are medians over rounds of the ratio within a round.
"""

import gc
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Literal

import torch

sys.path.insert(0, str(Path(__file__).parent))

from report import Row, arguments, bar_row, ratios, report

from distrec.optim.config import DecayConfig, OptimConfig
from distrec.optim.sparse import SparseOptimizer
from distrec.sharding.initialization import Normal
from distrec.sharding.partition import Partition
from distrec.sharding.table import Table

TOUCHED, DIM = 6000, 64
Scope = Literal["none", "in_batch", "full"]
Coupling = Literal["decoupled", "l2"]
SCOPES: tuple[Scope, ...] = ("none", "in_batch", "full")
Times = dict[str, list[float]]


def rounds(variants: dict[str, Callable[[], Callable[[], object]]], count: int) -> Times:
    """Return the milliseconds of each variant in each round; the order within a round is random.

    Args:
        variants: by name, a function that prepares the input and returns the function to time.
        count: number of rounds, after 5 more that compile and warm up.
    """
    found: Times = {name: [] for name in variants}
    for turn in range(-5, count):
        for name in random.sample(list(variants), len(variants)):
            work = variants[name]()
            start = time.perf_counter()
            work()
            if turn >= 0:
                found[name].append((time.perf_counter() - start) * 1e3)
    return found


def optimizers(rows: int, scopes: Sequence[Scope] = SCOPES) -> dict[str, SparseOptimizer]:
    """Return an optimizer for each scope, all sharing one table and one pair of moments."""
    partition = Partition(rows, 1, 1)
    found: dict[str, SparseOptimizer] = {}
    rows_VD = Normal(std=0.1).rows(0, "items", partition, 0, DIM)
    for scope in scopes:
        decay = DecayConfig(scope=scope, strength=0.0 if scope == "none" else 0.1)
        table = Table("items", partition, 0, rows_VD)
        found[scope] = SparseOptimizer(table, OptimConfig(decay=decay), total_steps=10**6)
        found[scope]._rule = found[scopes[0]]._rule
    for slot in found[scopes[0]]._rule.slots.values():
        slot.fill_(1e-3)  # map all pages now: the first write to a page would cost the step that makes it
    return found


def sparse_steps(rows: int) -> dict[str, Callable[[], Callable[[], object]]]:
    """Return a step of each scope on random unique rows, ascending as in training."""
    grad_UD = torch.randn(TOUCHED, DIM)

    def prepare(optimizer: SparseOptimizer) -> Callable[[], object]:
        local_U = torch.randint(rows, (2 * TOUCHED,)).unique()
        local_U = local_U[torch.randperm(len(local_U))[:TOUCHED]].sort().values
        return lambda: optimizer.step(local_U, grad_UD[: len(local_U)])

    return {scope: partial(prepare, optimizer) for scope, optimizer in optimizers(rows).items()}


IDLE_RULES: list[tuple[str, Coupling]] = [
    ("momentum", "decoupled"),
    ("adam", "decoupled"),
    ("adam", "l2"),
    ("adagrad", "l2"),
    ("rowwise_adagrad", "l2"),
]


def idle_steps(rows: int, rule: str, coupling: Coupling, idle: Literal["lazy", "sweep"], count: int) -> list[float]:
    """Return the milliseconds of a lookup and step of a rule that updates idle rows.

    Only the second half of `count` steps is returned: by then the gaps between the steps that touch a row have reached
    their stationary length.
    """
    partition = Partition(rows, 1, 1)
    table = Table("items", partition, 0, Normal(std=0.1).rows(0, "items", partition, 0, DIM))
    decay = DecayConfig(scope="full", coupling=coupling, strength=0.01)
    optimizer = SparseOptimizer(table, OptimConfig(rule=rule, idle=idle, decay=decay), total_steps=10**6)
    for slot in optimizer._rule.slots.values():
        slot.fill_(1e-3)
    grad_UD, found = 0.01 * torch.randn(TOUCHED, DIM), []
    for _ in range(count):
        local_U = torch.randint(rows, (TOUCHED,)).unique()
        start = time.perf_counter()
        table.read(local_U)
        optimizer.step(local_U, grad_UD[: len(local_U)])
        found.append((time.perf_counter() - start) * 1e3)
    return found[count // 2 :]


def idle_rules(rows: int) -> list[Row]:
    """Return the rows that compare deferred updates of idle rows with a sweep at each step, by rule."""
    found = []
    steps = max(100, 4 * rows // TOUCHED)
    for rule, coupling in IDLE_RULES:
        name = f"{rows:,} rows: {rule}, full {coupling}"
        deferred = idle_steps(rows, rule, coupling, "lazy", steps)
        swept = idle_steps(rows, rule, coupling, "sweep", 30)
        found += [bar_row(f"{name}, lazy", deferred, "ms"), bar_row(f"{name}, swept", swept, "ms")]
        found.append(
            Row(f"{name}, lazy / swept", statistics.median(deferred) / statistics.median(swept), "x", "of medians")
        )
    return found


def torch_sparse_adam(rows: int) -> Callable[[], Callable[[], object]]:
    """Return a step of torch.optim.SparseAdam, on a gradient that is coalesced already."""
    weight, grad_UD = torch.randn(rows, DIM).requires_grad_(), torch.randn(TOUCHED, DIM)
    rival = torch.optim.SparseAdam([weight])

    def prepare() -> Callable[[], object]:
        local_U = torch.randperm(rows)[:TOUCHED].sort().values
        weight.grad = torch.sparse_coo_tensor(
            local_U[None], grad_UD, weight.shape, is_coalesced=True, check_invariants=False
        )
        return rival.step

    return prepare


def dense_adam(rows: int, count: int) -> list[float]:
    """Return the milliseconds of steps of torch.optim.Adam(fused=True), which updates every row."""
    weight = torch.randn(rows, DIM).requires_grad_()
    weight.grad = torch.randn(rows, DIM)
    rival = torch.optim.Adam([weight], fused=True)
    return rounds({"adam": lambda: rival.step}, count)["adam"]


def flushes(rows: int, count: int) -> Times:
    """Return the milliseconds of flushing a whole table, and of copying it."""
    optimizer = optimizers(rows, ("full",))["full"]
    table, grad_UD = optimizer._table, torch.randn(TOUCHED, DIM)
    copy_VD = table.stored_VD.clone()

    def prepare() -> Callable[[], object]:
        optimizer.step(torch.randperm(rows)[:TOUCHED], grad_UD)
        return table.flush

    return rounds({"flush": prepare, "copy": lambda: lambda: copy_VD.copy_(table.stored_VD)}, count)


def state(rule: str) -> Row:
    """Return the bytes a row that full decay stores beside the rows and the accumulators of the rule."""
    rows_VD = torch.zeros(1000, 1)
    table = Table("items", Partition(1000, 1, 1), 0, rows_VD)
    decay = DecayConfig(scope="full", strength=0.1)
    optimizer = SparseOptimizer(table, OptimConfig(rule=rule, decay=decay), total_steps=10**6)
    kept = [
        value for value in vars(optimizer._deferred).values() if isinstance(value, torch.Tensor) and len(value) == 1000
    ]
    size = float(sum(value.element_size() for value in kept))
    return Row(f"state of full decay, {rule}", size, "bytes a row", bar="<= 8", holds=size <= 8)


def room_for(arrays: int, rows: int) -> bool:
    """Return whether arrays of this many rows fit into the available memory, with a reserve."""
    free = [line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemAvailable")]
    return int(free[0].split()[1]) * 1024 > 1.2 * arrays * rows * DIM * 4 + 2**30


def measure(quick: bool) -> tuple[list[Row], Times]:
    """Return all rows, and the curves of the plot: medians by size of the table."""
    found: list[Row] = []
    curves: Times = {name: [] for name in (*SCOPES, "dense")}
    sizes = [70_000, 1_000_000] + ([] if quick else [10_000_000])
    for rows in sizes:
        steps, name = sparse_steps(rows), f"{rows:,} rows"
        times = rounds(steps, 100 if quick else 400)
        rivals: Times = {}
        if rows == sizes[0]:  # in separate rounds, as SparseAdam evicts everything from the caches
            pair = {"full": steps["full"], "SparseAdam": torch_sparse_adam(rows)}
            rivals = rounds(pair, 30 if quick else 100)
            pair.clear()
        steps.clear()
        gc.collect()
        found += [bar_row(f"{name}: decay {scope}", times[scope], "ms") for scope in SCOPES]
        for scope in SCOPES:
            curves[scope].append(statistics.median(times[scope]))
        found.append(bar_row(f"{name}: full / in_batch", ratios(times["full"], times["in_batch"]), "x", 1.10))
        found.append(bar_row(f"{name}: full / none", ratios(times["full"], times["none"]), "x", 1.15))
        if rivals:
            found.append(bar_row(f"{name}: torch SparseAdam", rivals["SparseAdam"], "ms"))
            found.append(bar_row(f"{name}: full / SparseAdam", ratios(rivals["full"], rivals["SparseAdam"]), "x", 0.5))
        if room_for(4, rows):
            dense = dense_adam(rows, 10 if rows > 70_000 else 50)
            found.append(bar_row(f"{name}: torch Adam(fused=True), dense", dense, "ms"))
            curves["dense"].append(statistics.median(dense))
            gc.collect()
    growth = curves["full"][-1] / curves["full"][0]
    found.append(
        Row(f"full: {sizes[-1]:,} rows / {sizes[0]:,} rows", growth, "x", "of medians", bar="<= 3", holds=growth <= 3)
    )
    for rows in [] if quick else sizes[:2]:
        found += idle_rules(rows)
    times, name = flushes(1_000_000, 10 if quick else 50), "1,000,000 rows"
    found += [bar_row(f"{name}: flush", times["flush"], "ms"), bar_row(f"{name}: copy", times["copy"], "ms")]
    found.append(bar_row(f"{name}: flush / copy", ratios(times["flush"], times["copy"]), "x", 3))
    found += [state(rule) for rule in ("lazy_adam", "adam")]
    return found, {"rows": [float(size) for size in sizes], **curves}


def plot(curves: Times, file: Path) -> None:
    """Save the step time by size of the table as a picture."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4), layout="constrained")
    for name, values in curves.items():
        if name != "rows":
            label = "torch.optim.Adam(fused=True), dense" if name == "dense" else f"lazy_adam, decay {name}"
            axes.loglog(curves["rows"][: len(values)], values, marker="o", label=label)
    axes.set(xlabel="rows of the table", ylabel="ms a step", title=f"{TOUCHED:,} touched rows, D = {DIM}")
    axes.legend()
    figure.savefig(file)


def main() -> None:
    """Run the benchmark by the command line."""
    parser = arguments("Measure the cost of full-table weight decay.")
    parser.add_argument(
        "--plot", type=Path, metavar="FILE", help="save the step time by size of the table as a picture"
    )
    parser.add_argument("--threads", type=int, help="threads of torch and numba (default: all); 1 is least disturbed")
    given = parser.parse_args()
    if given.threads:
        torch.set_num_threads(given.threads)
    random.seed(0)
    torch.manual_seed(0)
    rows, curves = measure(given.quick)
    threads = torch.get_num_threads()
    title = f"lazy_adam if not stated otherwise, {TOUCHED:,} touched rows of D = {DIM}, float32, {threads} threads"
    report(rows, title, given.json)
    if given.plot:
        plot(curves, given.plot)


if __name__ == "__main__":
    main()
