"""Popularity in matrix factorisation: the protocol of the PRISM paper (Table 1, Figures 1 to 5), on small data.

    python benchmarks/popularity.py run ml-100k --jobs 2            # directau and ssm, three seeds, the whole grid
    python benchmarks/popularity.py run ml-1m --losses directau --seeds 123 --quick-grid
    python benchmarks/popularity.py run ml-100k --losses directau --seeds 123 --quick-grid --epochs 5 --lines 20000
    python benchmarks/popularity.py report                          # tables, figures, what agrees with the paper

Own split, 80/10/10 of each user's interactions, another one for each seed. Adam; decay as l2 in the gradient, of the
whole tables (full) or of the rows in the batch (in_batch), strengths {1e-8, 1e-6, 1e-4}; none; PRISM with alpha
{0, 0.25, 0.5, 0.75, 1} and no decay; and, which the paper does not have, decoupled decay of the whole tables with lr *
strength in {1e-6, ..., 1e-3}. Training on cosine, ranking by dot product, DirectAU with one and SSM with 10 negatives
at temperature 0.2; a run stops after 10 epochs without a better NDCG@20 on the validation part, and its best epoch is
tested.

Each finished training is a line of RESULTS; a second call goes on where the first one was stopped. One worker without
Ray and one thread a training; `--jobs` trainings run side by side. DISTREC_DATA names the folder of ml-100k/, ml-1m/.
"""

import argparse
import json
import shutil
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import torch
from measure.data import DATA_FOLDER
from popularity_report import write_report
from report import hardware

from distrec.core.errors import UserError
from distrec.data.prepare import prepare
from distrec.testing.host import FolderHost
from distrec.training.config import Config, load_config
from distrec.training.loop import Job, Loop, make_learner

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "benchmarks" / "popularity_results"
SOURCES = {"ml-100k": "ml-100k/ml-100k.inter", "ml-1m": "ml-1m/*.txt"}
L2, ALPHAS, DECOUPLED = (1e-8, 1e-6, 1e-4), (0.0, 0.25, 0.5, 0.75, 1.0), (1e-6, 1e-5, 1e-4, 1e-3)


class Task(NamedTuple):
    """One training."""

    data: str
    loss: str
    method: str
    """none, full, in_batch, decoupled or prism."""
    value: float
    """Strength of the decay (decoupled: lr * strength), or alpha."""
    seed: int
    lr: float
    epochs: int
    lines: int
    """Interactions of the data that are used, 0: all."""


def grid(given: argparse.Namespace) -> Iterator[Task]:
    """Yield the trainings, those of a seed together."""
    if given.quick_grid:
        methods = [("none", 0.0), ("in_batch", 1e-6), ("full", 1e-6), ("prism", 1.0)]
    else:
        methods = [("none", 0.0), *((scope, x) for scope in ("full", "in_batch") for x in L2)]
        methods += [*(("prism", x) for x in ALPHAS), *(("decoupled", x) for x in DECOUPLED)]
    for seed in given.seeds:
        for loss in given.losses:
            for method, value in methods:
                yield Task(given.data, loss, method, value, seed, given.lr, given.epochs, given.lines)


def config_of(task: Task, source: Path, cache: Path) -> Config:
    """Return the configuration of a training."""
    keys: dict[str, Any] = {
        "data.source": source,
        "data.cache": cache,
        "data.test_fraction": 0.1,
        "data.valid_fraction": 0.1111,
        "data.split_seed": task.seed,
        "model.init.name": "prism" if task.method == "prism" else "xavier_uniform",
        "loss.name": task.loss,
        "optim.rule": "adam",
        "optim.lr": task.lr,
        "train.workers": 1,
        "train.epochs": task.epochs,
        "train.patience": 10,
        "train.checkpoint_every": 10**6,
        "train.batch_size": 4096 if task.loss == "directau" else 16384,
        "train.device": "cpu",
        "eval.similarity": "dot",
        "eval.strata": "true",
        "eval.magnitudes": "true",
        "run.seed": task.seed,
    }
    if task.loss == "ssm":
        keys |= {"loss.temperature": 0.2, "sampling.negatives": 10, "sampling.shared": "false"}
        keys["sampling.reject"] = "false"
    if task.method == "prism":
        keys["model.init.alpha"] = task.value
    elif task.method == "decoupled":
        keys |= {"optim.decay.scope": "full", "optim.decay.strength": task.value / task.lr}
    elif task.method != "none":
        keys |= {"optim.decay.scope": task.method, "optim.decay.strength": task.value, "optim.decay.coupling": "l2"}
    return load_config(None, [f"{key}={value}" for key, value in keys.items()])


class BestHost(FolderHost):
    """Keeps the best checkpoint alone."""

    def keep(self, folder: Path, epoch: int, best: bool) -> None:
        if best:
            for old in self.folder.iterdir():
                shutil.rmtree(old)
            super().keep(folder, epoch, best)


def run(task: Task) -> dict[str, Any]:
    """Train and test. Return the line of the results."""
    torch.set_num_threads(1)
    source, start = DATA_FOLDER / SOURCES[task.data], time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        if task.lines:  # the first, as the lines of MovieLens-100k are shuffled
            header, *lines = source.read_text().splitlines()
            source = work / source.name
            source.write_text("\n".join([header, *lines[: task.lines]]) + "\n")
        (work / "best").mkdir()
        config = config_of(task, source, work / "cache")
        dataset = prepare(config.data, log=lambda text: None)
        host = BestHost(work / "best")
        outcome = Loop(Job(config, dataset, "thread"), make_learner(config, dataset, torch.device("cpu")), host).run()
    best, history = outcome["tested_epoch"], outcome["history"]
    valid = history[best - 1]["metrics"]
    curves = {name: [round(r["metrics"][f"ndcg@20/{name}"], 5) for r in history] for name in ("cosine", "dot")}
    warnings = [e["text"] for e in host.events if e["kind"] == "note" and e["text"].startswith("warning")]
    return {
        **task._asdict(),
        "test": outcome["test"].means(),
        "valid_ndcg": valid["ndcg@20"],
        "best_epoch": best,
        "epochs_run": len(history),
        "curves": curves,
        "warnings": warnings,
        "seconds": round(time.perf_counter() - start, 1),
    }


def run_all(given: argparse.Namespace) -> None:
    """Run the trainings of the grid that have no line yet."""
    results = given.results
    results.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
    done = {tuple(line[field] for field in Task._fields) for line in lines}
    tasks = [task for task in grid(given) if task not in done]
    print(f"{hardware()}; {len(tasks)} trainings, {given.jobs} side by side", flush=True)
    with ProcessPoolExecutor(given.jobs, mp_context=get_context("spawn")) as pool, results.open("a") as file:
        submitted = {pool.submit(run, task): task for task in tasks}
        for future in as_completed(submitted):
            try:
                line = future.result()
            except UserError as error:  # diverged; it is tried again by the next call
                print(*submitted[future], error, flush=True)
                continue
            file.write(json.dumps(line) + "\n")
            file.flush()
            shown = [line[key] for key in ("data", "loss", "method", "value", "seed", "epochs_run", "seconds")]
            print(*shown, f"{line['test']['ndcg@20']:.4f}", *line["warnings"], flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("run", help="train")
    command.add_argument("data", choices=sorted(SOURCES))
    command.add_argument("--losses", nargs="+", default=["directau", "ssm"], choices=["directau", "ssm"])
    command.add_argument("--seeds", nargs="+", type=int, default=[123, 246, 492])
    command.add_argument("--quick-grid", action="store_true", help="none, in batch 1e-6, full 1e-6 and PRISM alone")
    command.add_argument("--lr", type=float, default=0.001)
    command.add_argument("--epochs", type=int, default=1000)
    command.add_argument("--lines", type=int, default=0, help="interactions of ml-100k that are used, 0: all")
    command.add_argument("--jobs", type=int, default=1)
    command.add_argument("--results", type=Path, default=FOLDER / "results.jsonl")
    command = commands.add_parser("report", help="write tables, figures and what agrees with the paper")
    command.add_argument("--results", type=Path, default=FOLDER / "results.jsonl")
    given = parser.parse_args()
    if given.command == "report":
        write_report(given.results)
    else:
        run_all(given)


if __name__ == "__main__":
    main()
