"""Measure training steps that stay on a GPU, beside a plain PyTorch loop; ranking; large tables; a stream of Ray Data.

    python -m benchmarks.gpu.run [SECTION ...]

Sections: steps, plain, large, start, ray, decay, rules, ranking, deterministic, host, lightgcn, kernels; default all.
Data: Gowalla in the folder that DISTREC_DATA names. Results go to $OUT/gpu.json (default ./gpu.json) one by one, and a
section that fails does not stop the others. Without a GPU everything runs once at small sizes, on planted data on the
CPU, to test this script.

A step: draws, exclusion, addressing, the loss, its gradients, the optimizer, and what the host sends every 64 steps;
medians of whole epochs on pairs that lie in memory.
"""

import gc
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from benchmarks.gpu.plain import plain_step
from distrec.data.dataset import Dataset, Part
from distrec.data.prepare import prepare
from distrec.evaluation.ranking import UserItemPairs, rank
from distrec.sampling.batch import Batch
from distrec.sampling.stream import stream
from distrec.sharding.collectives import Exchange
from distrec.sharding.partition import Partition
from distrec.training.config import Config, load_config
from distrec.training.planning.sizes import Sizes
from distrec.training.planning.worker_memory import PAIR_ACTORS, total_bytes, worker_memory
from distrec.training.trainer import Trainer

GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if GPU else "cpu")
START = time.time()
GIB = 2**30
GOWALLA = Path(os.environ.get("DISTREC_DATA", "data")) / "gowalla"
_PLANTED = (300, 200, 6_000)
DATA = (
    (f"data.source={GOWALLA}", "data.valid_fraction=0")
    if GPU
    else tuple(f"data.planted.{k}={v}" for k, v in zip(("users", "items", "interactions"), _PLANTED, strict=True))
)
PAIR, DOT = "sampling.shared=false", ["model.similarity=dot", "model.init.std=0.1"]
SHAPES: dict[str, tuple[list[str], float]] = {
    "800 a pair, B 1,024": ([PAIR, "sampling.negatives=800", "train.batch_size=1024"], 0.5),
    "800 a pair, B 8,192": ([PAIR, "sampling.negatives=800", "train.batch_size=8192"], 2.0),
    "64 a pair, B 8,192": ([PAIR, "sampling.negatives=64", "train.batch_size=8192"], 0.35),
    "BPR, B 8,192": (["loss.name=bpr", PAIR, "sampling.negatives=1", *DOT, "train.batch_size=8192"], 0.25),
    "800 shared, B 2,048": (["sampling.negatives=800", "train.batch_size=2048"], 0.3),
    "exact softmax, B 1,024": (["loss.name=softmax", "train.batch_size=1024"], 1.3),
}
"""Overrides, and the milliseconds that a step may take on an H100."""
PLAIN = {"800 a pair, B 1,024": (1024, 0.14), "800 a pair, B 8,192": (8192, 0.09)}
"""Pairs, and the share of the plain loop's step that ours may take."""
MANY_ROWS = 10_000_000 if GPU else 400
MOST_ROWS = 50_000_000 if GPU else 400
SWEPT_ROWS = 1_000_000 if GPU else 200
results: dict[str, Any] = {"rows": []}


class InMemoryDataset:
    """Interactions without files, of users and items without names: what a trainer reads of a `Dataset`."""

    def __init__(self, users: int, items: int, count: int) -> None:
        random = np.random.default_rng(0)
        item = np.minimum(items * random.random(count) ** 2, items - 1).astype(np.int64)
        pair = np.unique(random.integers(0, users, count) * items + item)
        self._user, self._item = pair // items, (pair % items).astype(np.int32)
        counts = {"train": len(pair), "valid": 0, "test": 0}
        self.manifest = SimpleNamespace(users=users, items=items, buckets=64, **counts)

    def user_degrees(self) -> np.ndarray:
        return np.bincount(self._user, minlength=self.manifest.users)

    def item_degrees(self) -> np.ndarray:
        return np.bincount(self._item, minlength=self.manifest.items)

    def interactions(self, part: Part, buckets: range) -> tuple[np.ndarray, np.ndarray]:
        """Return all pairs, ordered by bucket: there is one worker."""
        assert part == Part.TRAIN and len(buckets) == self.manifest.buckets
        order = np.lexsort((self._item, self._user, self._user % self.manifest.buckets))
        return self._user[order], self._item[order]


@cache
def data() -> Dataset:
    """Return the data of the steps."""
    return prepare(load_config(None, DATA).data, log=lambda text: None)


@cache
def large_data(rows: int) -> Any:
    """Return data of so many rows, users and items alike."""
    return InMemoryDataset(rows // 2, rows // 2, 2_000_000 if GPU else 2_000)


def config_of(*settings: str) -> Config:
    """Return a configuration of one worker, by default with full decay."""
    decay = ["optim.decay.scope=full", "optim.decay.strength=0.01"]
    return load_config(None, [*DATA, *decay, "train.workers=1", "train.epochs=1000", *settings])


def report(section: str, name: str, values: list[float] | float, measured_in: str = "ms", **more: Any) -> float:
    """Print and keep a figure; `bar`: the most that it may be."""
    values = values if isinstance(values, list) else [values]
    value = statistics.median(values)
    row = {
        "section": section,
        "name": name,
        "value": value,
        "unit": measured_in,
        "low": min(values),
        "high": max(values),
    }
    if "bar" in more:
        more["met"] = value <= more["bar"]
    results["rows"].append(row | more)
    (Path(os.environ.get("OUT", ".")) / "gpu.json").write_text(json.dumps(results, indent=1))  # a crash loses nothing
    others = "".join(f", {k} {v:.4g}" if isinstance(v, float) else f", {k} {v}" for k, v in more.items())
    spread = f"({row['low']:.4g} to {row['high']:.4g})"
    print(f"[{time.time() - START:5.0f}] {section}: {name}: {value:.4g} {measured_in} {spread}{others}", flush=True)
    return float(value)


def now() -> float:
    """Return the time at which the GPU has done its work, in seconds."""
    if GPU:
        torch.cuda.synchronize()
    return time.perf_counter()


class Epochs:
    """Epochs of a trainer, or their first steps."""

    def __init__(self, config: Config, dataset: Any, steps: int | None = None) -> None:
        self.trainer = Trainer(config, dataset, DEVICE)
        self.source, self.epoch = self.trainer.source, 0
        self.first = self.source.steps - min(steps or self.source.steps, self.source.steps)
        self.steps = self.source.steps - self.first

    def batches(self) -> list[Batch]:
        """Return the batches of the next epoch."""
        return self.source.batches(self.epoch, self.first, self.source.steps)

    def run(self, batches: Iterator[Batch] | None = None) -> float:
        """Train an epoch; return its milliseconds a step."""
        batches = batches or iter(self.batches())
        start = now()
        self.trainer.train_epoch(self.epoch, self.first, batches, lambda done, loss: None)
        self.epoch += 1
        own = self.trainer.device_steps
        assert not GPU or own is None or own.captures, "steps were not captured"
        return (now() - start) / self.steps * 1e3


def kernels_ms(run: Callable[[], object], steps: int, top: int) -> float:
    """Return the time of all kernels of a run, ms a step; print the longest. What follows in the process is slower."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        run()
        torch.cuda.synchronize()
    events = sorted(profile.key_averages(), key=lambda event: -event.self_device_time_total)
    for event in events[:top]:
        print(f"        {event.self_device_time_total / steps:9.2f} us {event.count / steps:5.1f} x {event.key[:100]}")
    return float(sum(event.self_device_time_total for event in events)) / steps / 1e3


@cache
def resident(name: str) -> float:
    """Measure the steps of a shape; return the median, ms."""
    settings, bar = SHAPES[name]
    epochs = Epochs(config_of(*settings), data())
    start = now()
    epochs.run()
    first_s = now() - start
    times = [epochs.run() for _ in range(7 if GPU else 1)]
    return report("steps", name, times, bar=bar, first_epoch_s=first_s)


def steps() -> None:
    """Measure whole epochs."""
    for name in SHAPES:
        resident(name)


def plain() -> None:
    """Measure a plain PyTorch loop, and our steps beside it."""
    for name, (pairs, bar) in PLAIN.items():
        for how in ("gathered rows normalised", "whole tables normalised"):
            step = plain_step(data(), pairs if GPU else 64, 800 if GPU else 8, DEVICE, how.startswith("gathered"))
            step()
            loop = report("plain", f"{name}, {how}", [_timed(step, 10 if GPU else 1) for _ in range(7 if GPU else 1)])
            report("plain", f"{name}: step / plain loop, {how}", resident(name) / loop, "x", bar=bar)


def _timed(step: Callable[[], object], times: int) -> float:
    """Return the milliseconds of a call."""
    start = now()
    for _ in range(times):
        step()
    return (now() - start) / times * 1e3


def host() -> None:
    """Measure the same steps with draws on the CPU and operations launched from there: batches computed in advance."""
    for name, (settings, _) in SHAPES.items():
        epochs = Epochs(config_of(*settings, "train.capture=false"), data(), steps=24)
        epochs.run()
        report("host", name, [epochs.run() for _ in range(3 if GPU else 1)])


def ray() -> None:
    """Measure whole epochs whose pairs come from Ray Data, and the share of the time spent waiting for them."""
    import ray as cluster

    cluster.init(num_cpus=os.cpu_count(), include_dashboard=False, log_to_driver=False)
    for name, (settings, _) in SHAPES.items():
        epochs = Epochs(config_of(*settings), data())
        # The processes make some seven epochs of pairs ahead, most of them while the first epoch captures its steps.
        source, count, ahead = epochs.source, 40 if GPU else 3, 10 if GPU else 1
        look_ahead_mib = epochs.trainer.config.train.look_ahead_mib
        batches = stream(source, 0, count, source.bytes_per_step, look_ahead_mib, actors=PAIR_ACTORS)
        for _ in range(ahead):
            epochs.run(batches)
        epochs.trainer.timing()
        times = [epochs.run(batches) for _ in range(count - ahead)]
        split = epochs.trainer.timing()
        waited = split["wait"] / max(1e-9, sum(times) * epochs.steps / 1e3)
        mean = statistics.fmean(times)
        report(
            "ray",
            name,
            times,
            waited=waited,
            mean=mean,
            over_resident=mean / resident(name),
            epoch_s=mean * epochs.steps / 1e3,
        )
    cluster.shutdown()


def ranking() -> None:
    """Measure the top 20 of all items for every user, training items left out."""
    manifest = data().manifest
    user, item = data().interactions(Part.TRAIN, range(manifest.buckets))
    order = np.lexsort((item, user))
    known = UserItemPairs(user[order].astype(np.int64), item[order].astype(np.int64))
    rows_UD, rows_VD = (torch.randn(n, 64, device=DEVICE) for n in (manifest.users, manifest.items))
    partition, exchange = Partition(manifest.items, manifest.buckets, 1), Exchange(DEVICE)

    def rank_all() -> None:
        rank(rows_UD, known, rows_VD, partition, exchange, 20)

    rank_all()
    report("ranking", "top 20 of all users", [_timed(rank_all, 1) / 1e3 for _ in range(9)], "s", bar=0.05)


def deterministic() -> None:
    """Measure sums in a fixed order, and train twice: the bits must be the same."""
    for name in ("800 a pair, B 1,024", "BPR, B 8,192", "800 shared, B 2,048"):
        config, found, times = config_of(*SHAPES[name][0], "train.deterministic=true"), [], []
        for _ in range(2):
            epochs = Epochs(config, data())
            epochs.run()
            times = [epochs.run() for _ in range(3)]
            found.append([table.flush().clone() for table in epochs.trainer.tables.values()])
        same = all(torch.equal(a, b) for a, b in zip(*found, strict=True))
        report("deterministic", name, times, over_default=statistics.median(times) / resident(name), same_bits=same)
        assert same, f"{name}: two trainings differ"


def decay() -> None:
    """Measure full decay beside decay in the batch, on a table of many rows."""
    shape = [PAIR, "sampling.negatives=64", "train.batch_size=8192"]
    epochs = {
        scope: Epochs(config_of(*shape, f"optim.decay.scope={scope}"), large_data(MANY_ROWS), 100)
        for scope in ("in_batch", "full")
    }
    times: dict[str, list[float]] = {scope: [] for scope in epochs}
    for k in range(7 if GPU else 2):
        for scope, one in epochs.items():
            ms = one.run()
            times[scope] += [ms] if k else []
    for scope, values in times.items():
        report("decay", f"{MANY_ROWS:,} rows, {scope}", values)
    ratios = [a / b for a, b in zip(times["full"], times["in_batch"], strict=True)]
    report("decay", f"{MANY_ROWS:,} rows, full / in batch", ratios, "x", bar=1.05)


def rules() -> None:
    """Measure rules that update all rows at each step, beside the host, which updates them when they are next read."""
    shape = [PAIR, "sampling.negatives=64", "train.batch_size=8192"]
    for rule in ("momentum", "adam"):
        for name, dataset in (
            ("Gowalla", data()),
            (f"{SWEPT_ROWS:,} users, as many items", large_data(2 * SWEPT_ROWS)),
        ):
            for where, capture in (("there", "true"), ("launched from the host", "false")):
                config = config_of(*shape, f"optim.rule={rule}", "optim.lr=0.001", f"train.capture={capture}")
                epochs = Epochs(config, dataset, 40)
                assert not GPU or (epochs.trainer.device_steps is not None) == (capture == "true")
                epochs.run()
                report("rules", f"{rule}, {name}, {where}", [epochs.run() for _ in range(3 if GPU else 1)])
                del epochs


def large() -> None:
    """Measure steps and memory of the largest tables that are likely on one card, in float32 and bfloat16."""
    for dtype in ("float32", "bfloat16"):
        gc.collect()  # earlier trainers
        if GPU:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_reserved() if GPU else 0
        shape = [PAIR, "sampling.negatives=64", "train.batch_size=8192", f"model.bfloat16={dtype == 'bfloat16'}"]
        config, start = config_of(*shape, "optim.rule=rowwise_adagrad"), now()
        epochs = Epochs(config, large_data(MOST_ROWS), 40)
        made_s = now() - start
        times = [epochs.run() for _ in range(4 if GPU else 2)][1:]
        reserved = torch.cuda.max_memory_reserved() - before if GPU else 0  # what no other process can use
        parts = [part for part in worker_memory(config, Sizes.of(large_data(MOST_ROWS)), 1, GPU) if not part.baseline]
        planned = total_bytes([part for part in parts if part.name != "evaluation"], "device")
        report("large", f"{MOST_ROWS:,} rows, {dtype}", times, start_s=made_s, reserved_gib=reserved / GIB)
        report("large", f"{MOST_ROWS:,} rows, {dtype}: reserved / plan", reserved / planned, "x")
        del epochs


def start() -> None:
    """Measure a new process from its start to the end of its first 64 steps, with and without compiled programs."""
    with tempfile.TemporaryDirectory() as folder:
        for programs in ("compiled", "cached"):
            begun = time.perf_counter()
            environment = os.environ | {"TRITON_CACHE_DIR": folder}
            subprocess.run([sys.executable, "-m", "benchmarks.gpu.run", "first_steps"], env=environment, check=True)
            seconds = time.perf_counter() - begun
            report("start", f"import of torch, data, tables, 64 steps, programs {programs}", seconds, "s", bar=5.0)


def first_steps() -> None:
    """Take the first 64 steps; not a section."""
    Epochs(config_of(*SHAPES["800 a pair, B 1,024"][0]), data(), steps=64).run()
    now()


def kernels() -> None:
    """Measure how long kernels run. Comes last, as a profiler makes what follows slower."""
    for name, (settings, _) in SHAPES.items():
        epochs = Epochs(config_of(*settings), data())
        for _ in range(2):  # sizes are captured when they are met again
            epochs.run()
        took = kernels_ms(epochs.run, epochs.steps, int(os.environ.get("TOP", "0"))) if GPU else 0.0
        report("kernels", name, took)


def lightgcn() -> None:
    """Measure whole epochs of LightGCN."""
    for layers in (1, 3):
        shape = ["model.name=lightgcn", f"model.layers={layers}", "train.batch_size=2048", "sampling.negatives=800"]
        epochs = Epochs(config_of(*shape, "optim.decay.scope=none", "optim.decay.strength=0"), data())
        epochs.run()
        times = [epochs.run() for _ in range(2)]
        seconds = [ms * epochs.steps / 1e3 for ms in times]
        report("lightgcn", f"{layers} layers, 800 shared, B 2,048", times, epoch_s=min(seconds))


SECTIONS = (steps, plain, large, start, ray, decay, rules, ranking, deterministic, host, lightgcn, kernels)


def main() -> None:
    """Run the sections named."""
    torch.set_float32_matmul_precision("highest")
    name = torch.cuda.get_device_name() if GPU else platform.processor()
    versions = f"Python {platform.python_version()}, torch {torch.__version__}, numpy {np.__version__}"
    if sys.argv[1:] == ["first_steps"]:
        return first_steps()
    failed: list[str] = []
    results["machine"], results["data"] = f"{name}, {versions}", data().manifest.source
    print(results["machine"], DATA, flush=True)
    for section in SECTIONS:
        if section.__name__ in (sys.argv[1:] or [s.__name__ for s in SECTIONS]):
            try:
                section()
            except Exception:  # the others may still be measured: a GPU is lent for minutes
                traceback.print_exc()
                failed.append(section.__name__)
    missed = [
        f"{row['name']}: {row['value']:.4g}, bar {row['bar']}" for row in results["rows"] if not row.get("met", True)
    ]
    print("missed:", *missed, sep="\n  ")
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
