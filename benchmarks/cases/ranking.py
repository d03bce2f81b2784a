"""The 20 best of all items for every user, training items left out, beside implicit's `recommend` on equal factors."""

import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from measure.bench import Bench
from measure.floor import Floor, floor_rows
from report import Row, bar_row, ratios

from distrec.evaluation.ranking import Pairs, rank
from distrec.sharding.collectives import Exchange
from distrec.sharding.partition import Partition

_K, _MOST = 20, 1.0


def ours(bench: Bench) -> Callable[[], np.ndarray]:
    """The ranking that a training's evaluation calls, on the factors that implicit has learned."""
    factors = np.load(bench.data.folder / "factors.npz")
    users_UD, items_VD = (torch.from_numpy(factors[name]).to(bench.device) for name in ("users", "items"))
    known = Pairs(bench.data.user.astype(np.int64), bench.data.item.astype(np.int64))
    partition, exchange = Partition(len(items_VD), 64, 1), Exchange(bench.device)
    return lambda: rank(users_UD, known, items_VD, partition, exchange, _K).numpy()


def measure(bench: Bench) -> list[Row]:
    """Takes turns."""
    found: dict[str, list[float]] = {"distrec": [], "implicit": []}
    with bench.rival("implicit_rank.py", str(_K)) as implicit:
        ranked = ours(bench)
        lists = np.load(bench.data.folder / "factors.npz")["lists"]
        same = float(np.mean([len(np.intersect1d(a, b)) for a, b in zip(ranked(), lists, strict=True)])) / _K
        assert same > 0.999, f"the two rank differently: {same:.2%} of the lists agree"
        for _ in range(2 if bench.quick else 9):
            found["implicit"].append(bench.undisturbed(implicit.seconds))
            found["distrec"].append(bench.undisturbed(lambda: _seconds(ranked)))
    rows = [bar_row(f"ranking: {who}", values, "s") for who, values in found.items()]
    against = ratios(found["distrec"], found["implicit"])
    rows.append(bar_row("ranking: distrec / implicit", against, "x", most=_MOST, packages=implicit.versions))
    return rows + floor_rows("ranking", _floor(bench), statistics.median(found["distrec"]), bench.rates)


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _floor(bench: Bench) -> Floor:
    """Factors and known pairs are read, lists are written; scores may stay in the caches."""
    data = bench.data
    moved = 4 * 64 * (data.users + data.items) + 8 * len(data.user) + 8 * _K * data.users
    return Floor(moved, 64.0 * data.users * data.items)
