"""Top 20 of all items for every user, training items excluded, beside implicit's `recommend` on the same factors."""

import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from measure.bench import DIM, Bench
from measure.roofline import Work, bound_rows
from report import Row, bar_row, ratios

from distrec.evaluation.ranking import UserItemPairs, rank
from distrec.sharding.collectives import Exchange
from distrec.sharding.partition import Partition

_K, _MOST = 20, 1.0


def ranking(bench: Bench) -> Callable[[], np.ndarray]:
    """Return a function that ranks as the evaluation of a training does, on the factors that implicit has learned."""
    factors = np.load(bench.data.folder / "factors.npz")
    users_UD, items_VD = (torch.from_numpy(factors[name]).to(bench.device) for name in ("users", "items"))
    known = UserItemPairs(bench.data.user.astype(np.int64), bench.data.item.astype(np.int64))
    partition, exchange = Partition(len(items_VD), 64, 1), Exchange(bench.device)
    return lambda: rank(users_UD, known, items_VD, partition, exchange, _K)[1].numpy()


def measure(bench: Bench) -> list[Row]:
    """Interleave both rankings, after a check that their lists agree."""
    found: dict[str, list[float]] = {"distrec": [], "implicit": []}
    with bench.rival("implicit_rank.py", str(_K)) as implicit:
        rank_all = ranking(bench)
        lists = np.load(bench.data.folder / "factors.npz")["lists"]
        same = float(np.mean([len(np.intersect1d(a, b)) for a, b in zip(rank_all(), lists, strict=True)])) / _K
        assert same > 0.999, f"the two rank differently: {same:.2%} of the items in the lists agree"
        for _ in range(2 if bench.quick else 9):
            found["implicit"].append(bench.undisturbed(implicit.seconds))
            found["distrec"].append(bench.undisturbed(lambda: _seconds(rank_all)))
    rows = [bar_row(f"ranking: {name}", values, "s") for name, values in found.items()]
    against = ratios(found["distrec"], found["implicit"])
    rows.append(bar_row("ranking: distrec / implicit", against, "x", most=_MOST, packages=implicit.versions))
    return rows + bound_rows("ranking", _work(bench), statistics.median(found["distrec"]), bench.rates)


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _work(bench: Bench) -> Work:
    """Return the least work: factors and known pairs are read, lists are written, scores stay in the caches."""
    data = bench.data
    moved = 4 * DIM * (data.users + data.items) + 8 * len(data.user) + 8 * _K * data.users
    return Work(moved, float(DIM) * data.users * data.items)
