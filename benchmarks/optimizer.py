"""What full-table weight decay costs: a step, by scope and size of the table, beside torch's own optimizers.

    python benchmarks/optimizer.py --plot optimizer.png

All scopes work in turn on one table with one pair of moments, so that they find the same memory in the same state and
a busy machine disturbs them alike. Ratios are medians over rounds of the ratio within a round.
"""

import gc
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))

from report import Row, arguments, bar_row, ratios, report

from distrec.optim.config import DecayConfig, OptimConfig
from distrec.optim.sparse import SparseOptimizer
from distrec.sharding.initialization import normal_rows
from distrec.sharding.partition import Partition
from distrec.sharding.table import Table

TOUCHED, DIM = 6000, 64
SCOPES = ("none", "in_batch", "full")
Times = dict[str, list[float]]


def rounds(ways: dict[str, Callable[[], Callable[[], object]]], count: int) -> Times:
    """Milliseconds of each way in each round, in an order drawn anew. A way prepares its input, and gives what to time.

    The first rounds, which compile and warm up, are left out.
    """
    found: Times = {name: [] for name in ways}
    for turn in range(count + 5):
        for name in random.sample(list(ways), len(ways)):
            work = ways[name]()
            start = time.perf_counter()
            work()
            if turn >= 5:
                found[name].append((time.perf_counter() - start) * 1e3)
    return found


def optimizers(rows: int, scopes: Sequence[str] = SCOPES) -> dict[str, SparseOptimizer]:
    """One for each scope, all of one table and one pair of moments."""
    partition, found = Partition(rows, 1, 1), {}
    rows_VD = normal_rows(0, "items", partition, 0, DIM, 0.1)
    for scope in scopes:
        decay = DecayConfig(scope=scope, strength=0.0 if scope == "none" else 0.1)
        table = Table("items", partition, 0, rows_VD)
        found[scope] = SparseOptimizer(table, OptimConfig(decay=decay), total_steps=10**6)
        found[scope]._rule = found[scopes[0]]._rule
    for slot in found[scopes[0]]._rule.slots.values():
        slot.fill_(1e-3)  # a page that nobody has written to is not there yet, and costs the first step that touches it
    return found


def sparse_steps(rows: int) -> dict[str, Callable[[], Callable[[], object]]]:
    """A step of each scope, with random unique rows, ascending as training gives them."""
    grad_UD = torch.randn(TOUCHED, DIM)

    def prepare(optimizer: SparseOptimizer) -> Callable[[], object]:
        local_U = torch.randint(rows, (2 * TOUCHED,)).unique()
        local_U = local_U[torch.randperm(len(local_U))[:TOUCHED]].sort().values
        return lambda: optimizer.step(local_U, grad_UD[: len(local_U)])

    return {scope: (lambda o=optimizer: prepare(o)) for scope, optimizer in optimizers(rows).items()}


IDLE_RULES = [
    ("momentum", "decoupled"),
    ("adam", "decoupled"),
    ("adam", "l2"),
    ("adagrad", "l2"),
    ("rowwise_adagrad", "l2"),
]


def idle_steps(rows: int, rule: str, coupling: str, idle: str, count: int) -> list[float]:
    """Look-up and step of a rule whose idle rows move, once gaps are as long as they get on average."""
    table = Table("items", Partition(rows, 1, 1), 0, normal_rows(0, "items", Partition(rows, 1, 1), 0, DIM, 0.1))
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
    """What putting off the steps of idle rows gives, rule by rule."""
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
    """A step of torch.optim.SparseAdam, which is spared the sorting of its gradient."""
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
    """Steps of torch.optim.Adam(fused=True), which sweeps the table."""
    weight = torch.randn(rows, DIM).requires_grad_()
    weight.grad = torch.randn(rows, DIM)
    rival = torch.optim.Adam([weight], fused=True)
    return rounds({"adam": lambda: rival.step}, count)["adam"]


def settling(rows: int, count: int) -> Times:
    """Settling of a whole table, and a copy of it."""
    optimizer = optimizers(rows, ("full",))["full"]
    table, grad_UD = optimizer._table, torch.randn(TOUCHED, DIM)
    copy_VD = table.stored_VD.clone()

    def prepare() -> Callable[[], object]:
        optimizer.step(torch.randperm(rows)[:TOUCHED], grad_UD)
        return table.flush

    return rounds({"settle": prepare, "copy": lambda: lambda: copy_VD.copy_(table.stored_VD)}, count)


def state(rule: str) -> Row:
    """Bytes a row that full decay keeps beside the rows and the rule's own accumulators."""
    rows_VD = torch.zeros(1000, 1)
    table = Table("items", Partition(1000, 1, 1), 0, rows_VD)
    decay = DecayConfig(scope="full", strength=0.1)
    optimizer = SparseOptimizer(table, OptimConfig(rule=rule, decay=decay), total_steps=10**6)
    kept = [value for value in vars(optimizer._idle).values() if isinstance(value, torch.Tensor) and len(value) == 1000]
    size = float(sum(value.element_size() for value in kept))
    return Row(f"state of full decay, {rule}", size, "bytes a row", bar="<= 8", holds=size <= 8)


def room_for(arrays: int, rows: int) -> bool:
    """Whether so many arrays of that many rows fit into the memory that is free now, with a reserve."""
    free = [line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemAvailable")]
    return int(free[0].split()[1]) * 1024 > 1.2 * arrays * rows * DIM * 4 + 2**30


def measure(quick: bool) -> tuple[list[Row], Times]:
    """All rows, and the curves of the plot: medians by size."""
    found: list[Row] = []
    curves: Times = {name: [] for name in (*SCOPES, "dense")}
    sizes = [70_000, 1_000_000] + ([] if quick else [10_000_000])
    for rows in sizes:
        ways, name = sparse_steps(rows), f"{rows:,} rows"
        times = rounds(ways, 100 if quick else 400)
        rivals: Times = {}
        if rows == sizes[0]:  # in rounds of its own, as it leaves nothing in the caches
            pair = {"full": ways["full"], "SparseAdam": torch_sparse_adam(rows)}
            rivals = rounds(pair, 30 if quick else 100)
            pair.clear()
        ways.clear()
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
    times, name = settling(1_000_000, 10 if quick else 50), "1,000,000 rows"
    found += [bar_row(f"{name}: settling", times["settle"], "ms"), bar_row(f"{name}: copy", times["copy"], "ms")]
    found.append(bar_row(f"{name}: settling / copy", ratios(times["settle"], times["copy"]), "x", 3))
    found += [state(rule) for rule in ("lazy_adam", "adam")]
    return found, {"rows": [float(size) for size in sizes], **curves}


def plot(curves: Times, file: Path) -> None:
    """Step time by size of the table."""
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
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument(
        "--plot", type=Path, metavar="FILE", help="save the step time by size of the table as a picture"
    )
    parser.add_argument("--threads", type=int, help="of torch and numba (default: all); 1 suffers least from others")
    given = parser.parse_args()
    if given.threads:
        torch.set_num_threads(given.threads)
    random.seed(0)
    torch.manual_seed(0)
    rows, curves = measure(given.quick)
    threads = torch.get_num_threads()
    title = f"lazy_adam unless said otherwise, {TOUCHED:,} touched rows of D = {DIM}, float32, {threads} threads"
    report(rows, title, given.json)
    if given.plot:
        plot(curves, given.plot)


if __name__ == "__main__":
    main()
