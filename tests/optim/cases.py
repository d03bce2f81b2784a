"""Configurations and random runs of an optimizer: the rows of each step, and the reads in between."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from typing import Any

import pytest
import torch
from hypothesis import strategies as st

from distrec.optim.config import DecayConfig, OptimConfig, ScheduleConfig
from distrec.optim.rules import RULES
from distrec.optim.sparse import SparseOptimizer
from distrec.sharding.partition import Partition
from distrec.sharding.table import Table

SCOPES, COUPLINGS = ["none", "in_batch", "full"], ["decoupled", "l2"]
MODES = [("none", "decoupled"), ("in_batch", "decoupled"), ("in_batch", "l2"), ("full", "decoupled"), ("full", "l2")]
DTYPES = [torch.float32, torch.float64]
# On the CPU; in Triton's interpreter, where one launch takes milliseconds, only its own.
KERNELS = ["triton"] if os.environ.get("TRITON_INTERPRET") == "1" else ["reference", "numba"]
IDLE = ["lazy", "lazy", "sweep"]
SHRINKS = [0.0, 1e-12, 1e-6, 1e-3, 0.3, 0.999999]  # lr * strength, from nothing to the largest that is accepted
BETAS = [(0.9, 0.999), (0.0, 0.5), (0.5, 0.9), (0.95, 0.9)]  # beta1, beta2; with the last, idle updates never fade
SCHEDULES = st.builds(
    ScheduleConfig,
    name=st.sampled_from(["constant", "linear", "cosine", "step"]),
    warmup_steps=st.integers(0, 5),
    final_fraction=st.sampled_from([0.0, 0.1, 1.0]),
    every_steps=st.integers(1, 4),
    factor=st.sampled_from([0.5, 1.0]),
)
DIM = 5


def pairwise(*options: Sequence[Any]) -> list[tuple[Any, ...]]:
    """Return a covering array: tuples in which every pair of values of any two options occurs.

    Greedy and deterministic. It depends only on the positions of the values: reversing an option of two values gives
    each tuple the other one, so that two tests between them cover all combinations with it.
    """
    axes = [range(len(values)) for values in options]
    uncovered = {((i, a), (j, b)) for i, j in combinations(range(len(axes)), 2) for a, b in product(axes[i], axes[j])}
    used = {(k, value): 0 for k, axis in enumerate(axes) for value in axis}
    found = []
    while uncovered:
        chosen = dict(min(uncovered))
        for k in [k for k in range(len(axes)) if k not in chosen]:
            others = list(chosen.items())
            gains = [sum(tuple(sorted([(k, value), other])) in uncovered for other in others) for value in axes[k]]
            chosen[k] = max(axes[k], key=lambda value, k=k, gains=gains: (gains[value], -used[k, value]))
        uncovered -= set(combinations(sorted(chosen.items()), 2))
        for item in chosen.items():
            used[item] += 1
        found.append(tuple(options[k][chosen[k]] for k in range(len(axes))))
    return found


def each_mode(**options: Sequence[Any]) -> Callable:
    """Parametrize a test over every rule with every (scope, coupling), and pairwise over more options."""
    cases = [(rule, *mode, *rest) for rule, mode, *rest in pairwise(list(RULES), MODES, *options.values())]
    return _parametrize(["rule", "scope", "coupling", *options], cases)


def each_pair(couplings: Sequence[str] = COUPLINGS, **options: Sequence[Any]) -> Callable:
    """Parametrize a test pairwise over rule, scope, coupling and more options."""
    return _parametrize(
        ["rule", "scope", "coupling", *options], pairwise(list(RULES), SCOPES, couplings, *options.values())
    )


def _parametrize(names: list[str], cases: list[tuple[Any, ...]]) -> Callable:
    ids = ["-".join(str(value).removeprefix("torch.") for value in case) for case in cases]
    return pytest.mark.parametrize(names, cases, ids=ids)


@dataclass(frozen=True)
class Run:
    """A run over a table of `size` rows.

    An action is ("step", rows), ("read", rows), ("flush", ()) or ("pause", one entry for each empty step).
    """

    config: OptimConfig
    total_steps: int
    size: int
    actions: list[tuple[str, list[int]]]
    seed: int
    grad_scale: float


def config(rule="sgd", scope="none", coupling="decoupled", lr=0.1, shrink=0.01, schedule=ScheduleConfig(), **more):
    """Return a configuration whose decay shrinks a row by `shrink` at the peak of the schedule."""
    strength = 0.0 if scope == "none" else shrink / lr
    decay = DecayConfig(scope=scope, coupling=coupling, strength=strength)
    return OptimConfig(rule=rule, lr=lr, decay=decay, schedule=schedule, **more)


@st.composite
def runs(draw) -> Run:
    """Draw runs with gaps, empty batches, and rows that are never touched."""
    rule, (scope, coupling) = draw(st.sampled_from(list(RULES))), draw(st.sampled_from(MODES))
    lr, shrink = draw(st.sampled_from([1e-3, 0.1])), draw(st.sampled_from(SHRINKS))
    beta1, beta2 = draw(st.sampled_from(BETAS))
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
        step, step, step, pause, st.tuples(st.just("read"), rows), st.tuples(st.just("flush"), st.just([]))
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
    """Return a whole table on one worker that holds a copy of these rows."""
    return Table("items", Partition(len(rows_VD), max(1, len(rows_VD)), 1), 0, rows_VD.clone())


def start(chosen: OptimConfig, rows_VD: torch.Tensor, total_steps: int = 100) -> tuple[Table, SparseOptimizer]:
    """Return a table that holds a copy of these rows, with its optimizer."""
    table = table_of(rows_VD)
    return table, SparseOptimizer(table, chosen, total_steps)


def batches(
    seed: int, steps: int, size: int, dtype: torch.dtype = torch.float64
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return (rows, gradients) of some steps: each row in half of them, in any order; every fifth step is empty."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for step in range(steps):
        count = 0 if step % 5 == 4 else (size + 1) // 2
        rows_U = torch.randperm(size, generator=generator)[:count]
        found.append((rows_U, torch.randn(count, DIM, generator=generator, dtype=torch.float32).to(dtype)))
    return found
