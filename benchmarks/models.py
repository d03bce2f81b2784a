"""Models and solvers: speed beside other implementations, and what each reaches on MovieLens-1M and Gowalla.

    python benchmarks/models.py speed                           # LightGCN and iALS beside rivals, on Gowalla
    python benchmarks/models.py speed --only ials --threads 1
    python benchmarks/models.py train --data ml-1m --json models.json
    python benchmarks/models.py train --data gowalla --only ials,itemknn,pop --json gowalla.json
    python benchmarks/models.py show models.json gowalla.json --plot models.png

`speed` measures in turns, in one run: steps of LightGCN (3 layers, BPR, batch 2048, drawing included) beside PyTorch
Geometric's with dense Adam and RecBole's; iterations of iALS beside implicit's without conjugate gradients, on the same
objective from the same factors, whose value is compared after 10 iterations. `make bench` installs the rivals.
`train` trains each model in a process of its own, without Ray, on nine tenths of the training part; the rows tested are
those of the epoch that was best on the last tenth.

DISTREC_DATA names the folder that holds gowalla/ and ml-1m/.
"""

import argparse
import json
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure.data import DATA_FOLDER, source_settings
from measure.peak_rss import peak_rss
from measure.rival import open_rival
from measure.steps import timed_step
from report import Row, bar_row, hardware, ratios, report

from distrec.data.dataset import Part
from distrec.data.prepare import prepare
from distrec.models.ials import ALSLearner
from distrec.sharding.table import ITEMS, USERS
from distrec.testing.host import FolderHost
from distrec.tracking.environment import versions
from distrec.training.config import load_config
from distrec.training.loop import Job, Loop, make_learner
from distrec.training.trainer import Trainer

_STEPS, _ITERATIONS = 5, 10  # of LightGCN a round; of iALS a round
_ALPHA, _REGULARIZATION = 40.0, 0.5  # of implicit: weight of an interaction, strength of the ridge
_GRADIENT = ["train.batch_size=2048", "sampling.negatives=64", "sampling.reject=false", "optim.lr=1e-3"]
_GRADIENT += ["model.init.name=xavier_uniform", "loss.name=ssm"]
# Settings by data set and model.
SETTINGS: dict[str, dict[str, list[str]]] = {
    "ml-1m": {
        "mf": [*_GRADIENT, "train.epochs=60"],
        "lightgcn": [*_GRADIENT, "model.layers=3", "train.epochs=60"],
        "mlp": [*_GRADIENT, "train.epochs=60"],
        "simplex": [*_GRADIENT, "train.epochs=60"],
        "gcmc": [*_GRADIENT, "train.epochs=60"],
        "ials": ["train.epochs=16"],
        "ease": [],
        "itemknn": [],
        "pop": [],
    },
    "gowalla": {
        "lightgcn": [*_GRADIENT, "model.layers=3", "train.epochs=30"],
        "ials": ["train.epochs=16"],
        "itemknn": [],
        "pop": [],
    },
}
# Recall@20 and NDCG@20 in %, on the public split of Gowalla: paper and table.
PUBLISHED = {("gowalla", "lightgcn"): "18.30 / 15.54 (MINE, 3)", ("gowalla", "ials"): "13.88 / 12.24 (MINE, 3)"}


def dataset_of(settings: list[str], folder: Path) -> tuple[Any, Any]:
    """Return (configuration, prepared data)."""
    config = load_config(None, ["train.workers=1", f"data.cache={folder}/cache", *settings])
    return config, prepare(config.data, log=lambda text: None)


def training_pairs(dataset: Any, folder: Path) -> None:
    """Write the training pairs for the rivals, with the ids that index the rows."""
    user, item = dataset.interactions(Part.TRAIN, range(dataset.manifest.buckets))
    np.savez(folder / "train.npz", user=user.astype(np.int32), item=item.astype(np.int32))


def lightgcn(rounds: int, rivals: Path, folder: Path) -> list[Row]:
    """Return steps of LightGCN, and their ratio to the rivals', in rounds of some steps each."""
    threads = str(torch.get_num_threads())
    settings = ["model.name=lightgcn", "model.layers=3", "model.similarity=dot", "loss.name=bpr"]
    settings += ["sampling.negatives=1", "sampling.shared=false", "train.batch_size=2048"]
    config, dataset = dataset_of([*source_settings()[1], *settings], folder)
    training_pairs(dataset, folder)
    trainer = make_learner(config, dataset, torch.device("cpu"))
    assert isinstance(trainer, Trainer)
    ours = steps(trainer)
    with ExitStack() as stack:
        opened = {
            "PyTorch Geometric": open_rival(
                Path(sys.executable), "pyg_lightgcn.py", [str(folder), "2048", "3", threads, str(_STEPS)]
            ),
            "RecBole": open_rival(
                rivals,
                "recbole_training.py",
                [str(folder), "LightGCN", "2048", str(_STEPS)],
                {"TORCH_THREADS": threads},
            ),
        }
        opened = {name: stack.enter_context(process) for name, process in opened.items()}
        found: dict[str, list[float]] = {name: [] for name in ["distrec", *opened]}
        for measured in range(rounds + 1):
            for name, seconds in {"distrec": ours, **{n: r.seconds for n, r in opened.items()}}.items():
                value = seconds()
                if measured:  # the first round warms up
                    found[name].append(value)
        packages = {name: version for process in opened.values() for name, version in process.versions.items()}
    rows = [bar_row(f"LightGCN: {n}, step", [1e3 * v for v in values], "ms") for n, values in found.items()]
    for name, most in (("PyTorch Geometric", 0.33), ("RecBole", 0.7)):
        values = ratios(found["distrec"], found[name])
        rows.append(bar_row(f"LightGCN: distrec / {name}", values, "x", most=most, packages=packages))
    return rows


def steps(trainer: Trainer) -> Callable[[], float]:
    """Return a function that returns the median duration of some steps, with the drawing of their batches, s."""
    epochs = (trainer.source.batches(epoch, 0, trainer.source.steps) for epoch in range(10**6))
    step = timed_step(trainer, (batch for epoch in epochs for batch in epoch))
    return lambda: statistics.median(step() for _ in range(_STEPS))


def ials(rounds: int, rivals: Path, folder: Path) -> list[Row]:
    """Return iterations of iALS over those of implicit, and how far the objectives are apart after 10."""
    settings = ["model.name=ials", "model.debiased=true", "model.form=ratio", "model.alpha=0"]
    settings += ["model.frequency_exponent=0", f"model.unobserved_weight={1 / _ALPHA}"]
    settings += [f"model.regularization={_REGULARIZATION / _ALPHA}"]
    config, dataset = dataset_of([*source_settings()[1], *settings], folder)
    training_pairs(dataset, folder)
    learner = make_learner(config, dataset, torch.device("cpu"))
    assert isinstance(learner, ALSLearner)
    start = {entity: rows.clone() for entity, rows in learner.rows.items()}
    np.savez(
        folder / "start.npz",
        users=rows_by_id(learner, USERS),
        items=rows_by_id(learner, ITEMS),
        alpha=_ALPHA,
        regularization=_REGULARIZATION,
        iterations=_ITERATIONS,
    )
    iterate(learner)  # compiles, and reads the interactions
    found: dict[str, list[float]] = {"distrec": [], "implicit": []}
    with open_rival(rivals, "implicit_als.py", [str(folder), str(torch.get_num_threads())]) as implicit:
        for _ in range(rounds):
            for entity, rows in start.items():
                learner.rows[entity] = rows.clone()
            found["distrec"].append(statistics.median(iterate(learner) for _ in range(_ITERATIONS)))
            found["implicit"].append(implicit.seconds())
        packages = implicit.versions
    end = np.load(folder / "end.npz")
    theirs = objective(dataset, end["users"], end["items"])
    ours = objective(dataset, rows_by_id(learner, USERS), rows_by_id(learner, ITEMS))
    rows = [bar_row(f"iALS: {name}, iteration", [1e3 * v for v in values], "ms") for name, values in found.items()]
    values = ratios(found["distrec"], found["implicit"])
    rows.append(bar_row("iALS: distrec / implicit", values, "x", most=1.5, packages=packages))
    return [*rows, bar_row("iALS: objectives after 10 iterations apart", [abs(ours / theirs - 1)], "", most=1e-3)]


def iterate(learner: ALSLearner) -> float:
    """Return the duration of an iteration, s."""
    start_s = time.perf_counter()
    learner.train_epoch(0, 0, iter(()), lambda done, loss: None)
    return time.perf_counter() - start_s


def rows_by_id(learner: ALSLearner, entity: str) -> np.ndarray:
    """Return all rows of an entity, ordered by id, of the one worker."""
    rows = np.empty(tuple(learner.rows[entity].shape), np.float32)
    rows[learner.partitions[entity].rows_of(0)] = learner.rows[entity].numpy()
    return rows


def objective(dataset: Any, users_UD: np.ndarray, items_VD: np.ndarray) -> float:
    """Return sum over pairs of (y - 1)^2 - a0 y^2, plus a0 sum over all of y^2, plus the ridge, in float64."""
    user, item = dataset.interactions(Part.TRAIN, range(dataset.manifest.buckets))
    users_UD, items_VD = users_UD.astype(float), items_VD.astype(float)
    y = np.einsum("pd,pd->p", users_UD[user], items_VD[item])
    everywhere = ((users_UD.T @ users_UD) * (items_VD.T @ items_VD)).sum() / _ALPHA
    norms = (users_UD**2).sum() + (items_VD**2).sum()
    return float(((y - 1) ** 2 - y**2 / _ALPHA).sum() + everywhere + _REGULARIZATION / _ALPHA * norms)


def train(data: str, name: str, threads: int, settings: list[str]) -> dict[str, Any]:
    """Train a model, in this process. Return its curve over (seconds, epoch, validation NDCG@20), and test metrics."""
    torch.set_num_threads(threads)
    source = [f"data.source={DATA_FOLDER / data}", "data.valid_fraction=0.1", "eval.every=1", "train.watch=ndcg@20"]
    source += ["data.test_fraction=0.2"] if data == "ml-1m" else []
    source += ["train.device=cpu", f"model.name={name}"]
    with tempfile.TemporaryDirectory() as folder:
        config, dataset = dataset_of([*source, *SETTINGS[data].get(name, []), *settings], Path(folder))
        start_s = time.perf_counter()
        learner, host = make_learner(config, dataset, torch.device("cpu")), FolderHost(Path(folder))
        found = Loop(Job(config, dataset, "thread"), learner, host).run()
        total_s = time.perf_counter() - start_s
    seconds, curve = 0.0, []
    for record in found["history"]:
        seconds += record["seconds"]
        curve.append((seconds, record["epoch"], record.get("metrics", {}).get("ndcg@20")))
    return {
        "data": data,
        "model": name,
        "epoch_s": statistics.median(record["seconds"] for record in found["history"]),
        "epochs": len(curve),
        "tested_epoch": found["tested_epoch"],
        "total_s": total_s,
        "peak_mib": peak_rss() / 2**20,
        "curve": curve,
        "test": found["test"].means(),
        "settings": [*SETTINGS[data].get(name, []), *settings],
    }


def show(found: list[dict[str, Any]], plot: Path | None) -> None:
    """Print the results as a Markdown table for each data set, and save the curves."""
    for data in dict.fromkeys(r["data"] for r in found):
        print(f"\n| {data} | s an epoch | epochs, tested | test Recall@20 / NDCG@20, % | published | peak, MiB |")
        print("|---|---|---|---|---|---|")
        for r in sorted((r for r in found if r["data"] == data), key=lambda r: -r["test"]["ndcg@20"]):
            test = f"{100 * r['test']['recall@20']:.2f} / {100 * r['test']['ndcg@20']:.2f}"
            epochs, published = f"{r['epochs']}, {r['tested_epoch']}", PUBLISHED.get((data, r["model"]), "")
            print(f"| `{r['model']}` | {r['epoch_s']:.3g} | {epochs} | {test} | {published} | {r['peak_mib']:.0f} |")
    if plot is None:
        return
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    sets = list(dict.fromkeys(r["data"] for r in found))
    figure, axes = pyplot.subplots(1, len(sets), figsize=(6 * len(sets), 4.5), layout="constrained", squeeze=False)
    for axis, data in zip(axes[0], sets, strict=True):
        for r in (r for r in found if r["data"] == data):
            points = [(seconds, value) for seconds, _, value in r["curve"] if value is not None]
            axis.plot(*zip(*points, strict=True), marker=".", label=r["model"])
        axis.set(xlabel="seconds of training", ylabel="validation NDCG@20", title=data, xscale="log")
        axis.grid(alpha=0.3)
        axis.legend()
    figure.savefig(plot, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description="Models and solvers: speed beside rivals, and metrics.")
    parser.add_argument("what", choices=["speed", "train", "show"])
    parser.add_argument("words", nargs="*", help="for train: key=value settings; for show: files that train wrote")
    parser.add_argument("--data", default="ml-1m", choices=list(SETTINGS), help="for train (default: %(default)s)")
    parser.add_argument("--only", default="", metavar="NAMES", help="models, with commas between them")
    parser.add_argument("--rounds", type=int, default=5, help="for speed (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="of each program (default: %(default)s)")
    parser.add_argument("--rivals", type=Path, metavar="PYTHON", default=Path(".venv-rivals/bin/python"))
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the results to FILE")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="save the curves as a picture")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    only = set(filter(None, given.only.split(",")))
    if given.what == "speed":
        with tempfile.TemporaryDirectory() as folder:
            cases = {"lightgcn": lightgcn, "ials": ials}
            measured = [
                case(given.rounds, given.rivals.absolute(), Path(folder))
                for n, case in cases.items()
                if not only or n in only
            ]
        report(
            [row for rows in measured for row in rows],
            f"{source_settings()[0]}, D = 64, {given.threads} threads",
            given.json,
        )
        return
    found = []
    if given.what == "train":
        print(
            f"{hardware()}; {', '.join(f'{n} {v}' for n, v in versions().items())}; {given.threads} threads", flush=True
        )
        for name in (name for name in SETTINGS[given.data] if not only or name in only):
            with multiprocessing.get_context("spawn").Pool(1) as pool:  # so that the peak of memory is the model's own
                found.append(pool.apply(train, (given.data, name, given.threads, given.words)))
            show(found[-1:], None)
            if given.json:
                given.json.write_text(json.dumps(found))
    else:
        found = [result for file in given.words for result in json.loads(Path(file).read_text())]
    show(found, given.plot)


if __name__ == "__main__":
    main()
