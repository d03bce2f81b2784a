"""Random runs of an optimizer: the configuration, the rows that each step touches, the reads in between."""

import itertools
import os
from dataclasses import dataclass

import torch
from hypothesis import strategies as st

from distrec.optim.config import DecayConfig, OptimConfig, ScheduleConfig
from distrec.optim.rules import RULES
from distrec.optim.sparse import SparseOptimizer
from distrec.sharding.partition import Partition
from distrec.sharding.table import Table

MODES = [("none", "decoupled"), ("in_batch", "decoupled"), ("in_batch", "l2"), ("full", "decoupled"), ("full", "l2")]
ALLOWED = [(rule, scope, coupling) for rule, (scope, coupling) in itertools.product(RULES, MODES)]
# Of the CPU; in Triton's interpreter, where one launch takes milliseconds, nothing else.
KERNELS = ["triton"] if os.environ.get("TRITON_INTERPRET") == "1" else ["reference", "numba"]
IDLE = ["lazy", "lazy", "sweep"]
SHRINKS = [0.0, 1e-12, 1e-6, 1e-3, 0.3, 0.999999]  # lr * strength: from nothing to the edge of what is allowed
FADING = [(0.9, 0.999), (0.0, 0.5), (0.5, 0.9), (0.95, 0.9)]  # beta1, beta2; with the last, idle updates never fade
SCHEDULES = st.builds(
    ScheduleConfig,
    name=st.sampled_from(["constant", "linear", "cosine", "step"]),
    warmup_steps=st.integers(0, 5),
    final_fraction=st.sampled_from([0.0, 0.1, 1.0]),
    every_steps=st.integers(1, 4),
    factor=st.sampled_from([0.5, 1.0]),
)
DIM = 5


@dataclass(frozen=True)
class Run:
    """A run over a table of `size` rows. An action is a step ("step", rows), or ("read", rows), or ("settle", ()), or
    ("pause", one entry for each empty step)."""

    config: OptimConfig
    total_steps: int
    size: int
    actions: list[tuple[str, list[int]]]
    seed: int
    grad_scale: float


def config(rule="sgd", scope="none", coupling="decoupled", lr=0.1, shrink=0.01, schedule=ScheduleConfig(), **more):
    """A configuration whose decay shrinks a row by `shrink` at the peak of the schedule."""
    strength = 0.0 if scope == "none" else shrink / lr
    decay = DecayConfig(scope=scope, coupling=coupling, strength=strength)
    return OptimConfig(rule=rule, lr=lr, decay=decay, schedule=schedule, **more)


@st.composite
def runs(draw) -> Run:
    """Runs with gaps, empty batches, and rows that are never touched."""
    rule, scope, coupling = draw(st.sampled_from(ALLOWED))
    lr, shrink = draw(st.sampled_from([1e-3, 0.1])), draw(st.sampled_from(SHRINKS))
    beta1, beta2 = draw(st.sampled_from(FADING))
    chosen = config(
        rule,
        scope,
        coupling,
        lr,
        shrink,
        draw(SCHEDULES),
        kernels=draw(st.sampled_from(KERNELS)),
        idle=draw(st.sampled_from(IDLE)),
        beta1=beta1,
        beta2=beta2,
        momentum=draw(st.sampled_from([0.0, 0.9, 0.99])),
    )
    size = draw(st.integers(1, 6))
    rows = st.lists(st.integers(0, size - 1), unique=True, min_size=1)
    step = st.tuples(st.just("step"), st.one_of(st.just([]), rows, rows, rows))
    pause = st.tuples(st.just("pause"), st.lists(st.just(0), min_size=1, max_size=60))
    action = st.one_of(
        step, step, step, pause, st.tuples(st.just("read"), rows), st.tuples(st.just("settle"), st.just([]))
    )
    return Run(
        config=chosen,
        total_steps=draw(st.integers(1, 20)),
        size=size,
        actions=draw(st.lists(action, min_size=6, max_size=24)),
        seed=draw(st.integers(0, 10**6)),
        grad_scale=draw(st.sampled_from([1e-3, 1.0, 100.0])),
    )


def table_of(rows_VD: torch.Tensor) -> Table:
    """A whole table on one worker, holding a copy of these rows."""
    return Table("items", Partition(len(rows_VD), max(1, len(rows_VD)), 1), 0, rows_VD.clone())


def start(chosen: OptimConfig, rows_VD: torch.Tensor, total_steps: int = 100) -> tuple[Table, SparseOptimizer]:
    """A table that holds a copy of these rows, with its optimizer."""
    table = table_of(rows_VD)
    return table, SparseOptimizer(table, chosen, total_steps)


def batches(
    seed: int, steps: int, size: int, dtype: torch.dtype = torch.float64
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """(rows, gradients) of some steps: each row in half of them, in no order; every fifth step is empty."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for step in range(steps):
        count = 0 if step % 5 == 4 else (size + 1) // 2
        rows_U = torch.randperm(size, generator=generator)[:count]
        found.append((rows_U, torch.randn(count, DIM, generator=generator, dtype=torch.float32).to(dtype)))
    return found
