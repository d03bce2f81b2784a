"""All losses with matrix factorisation on Gowalla: the cost of a step, and what minutes of training reach.

    python benchmarks/losses.py cost
    python benchmarks/losses.py train --seconds 300 --json losses.json --plot losses.png
    python benchmarks/losses.py train --only bsl,mine_plus --threads 1 --json part.json
    python benchmarks/losses.py show losses.json part.json --plot losses.png

`cost` compares a step with 800 negatives a pair, batch 1024, with that of `ssm`, in turns within one process; and that
of `directau`, batch 4096, with its four matrix products. `train` trains each loss for some seconds, evaluations not
counted, on nine tenths of the training interactions, with the same negatives for all pairs of a batch. Options are
those published for Gowalla, where there are any, and the defaults elsewhere; nothing is tuned here.

`macr`, which is for the model of that name, and `infonce`, which is `ssm`, are left out. Without Ray, one worker.
DISTREC_DATA names the folder that holds gowalla/; without it, synthetic data of that size.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from measure.data import source_settings
from measure.steps import median_step
from report import Row, bar_row, hardware, report

from distrec.data.dataset import Part
from distrec.data.prepare import prepare
from distrec.evaluation.evaluator import evaluate_part
from distrec.losses import losses
from distrec.sampling.stream import stream
from distrec.tracking.environment import versions
from distrec.training.config import load_config
from distrec.training.loop import make_learner
from distrec.training.trainer import Trainer

_DRAWN, _WARM_UP, _STEPS = 8, 3, 8
_ALL = ["sampling.negatives=800", "sampling.reject=false", "train.workers=1", "train.batch_size=2048"]
_ALL += ["model.init.name=xavier_uniform"]
_BPR = ["model.similarity=dot", "sampling.negatives=1", "sampling.shared=false", "sampling.reject=true"]
# Settings beside the loss's name and _ALL; the published ones for Gowalla (README of this folder has the sources).
SETTINGS: dict[str, list[str]] = {
    "bpr": _BPR,
    "ipl": [*_BPR, "loss.gamma=1.285"],
    "resn": _BPR,
    "hinge": ["model.similarity=dot"],
    "simce": ["model.similarity=dot", "sampling.negatives=64"],
    "ssm": [],
    "softmax": [],
    "contrastive": [],
    "triplet": [],
    "generalized_contrastive": [],
    "ccl": [],
    "mml": [],
    "mse": [],
    "bce": ["model.similarity=dot"],
    "mine": ["model.similarity=dot"],
    "mine_plus": ["loss.temperature=0.4", "loss.negative_weight=1.2"],
    "bsl": ["loss.temperature=0.08", "loss.exponent=1.22"],
    "debiased_infonce": [],
    "debiased_mse": [],
    "debiased_ccl": ["loss.negative_weight=0.7", "loss.extra_positives=20"],
    "directau": ["loss.gamma=2", "train.batch_size=4096"],
    "mawu": ["loss.user_weight=2.6", "loss.item_weight=1.4", "train.batch_size=4096"],
}
# Recall@20 and NDCG@20 in %, by MF on the test part of Gowalla: paper and table.
PUBLISHED = {
    "bpr": "13.56 / 11.21 (SimCE, 2)",
    "hinge": "7.58 / 5.41 (MML, 4)",
    "simce": "16.93 / 14.13 (SimCE, 2)",
    "ssm": "14.30 / 11.41 (SimCE, 2)",
    "ccl": "18.17 / 14.61 (MINE, 2)",
    "mml": "18.16 / 14.35 (MML, 2)",
    "mse": "14.27 / 12.39 (MINE, 2)",
    "mine": "16.93 / 14.28 (MINE, 2)",
    "mine_plus": "18.13 / 15.31 (MINE, 2)",
    "bsl": "18.04 / 15.21 (MML, 4)",
    "debiased_infonce": "16.57 / 13.72 (MINE, 2)",
    "debiased_mse": "14.98 / 12.64 (MINE, 2)",
    "debiased_ccl": "18.42 / 14.97 (MINE, 2)",
}


def learner(name: str, settings: list[str], folder: Path) -> Trainer:
    """Return the trainer of a loss on this machine's data."""
    _, source = source_settings()
    overrides = [*source, f"data.cache={folder}", *_ALL, f"loss.name={name}", *SETTINGS.get(name, []), *settings]
    config = load_config(None, overrides)
    dataset = prepare(config.data, log=lambda text: None)
    trainer = make_learner(config, dataset, torch.device("cpu"))
    assert isinstance(trainer, Trainer), trainer
    return trainer


def steps(trainer: Trainer) -> Callable[[], float]:
    return median_step(trainer, _DRAWN, _WARM_UP, _STEPS)


def four_products(batch_size: int) -> Callable[[], float]:
    """Return a function that returns the seconds of the matrix products of `directau`: x x^T and p x, both sides."""
    rows_BD = torch.randn(batch_size, 64)

    def products() -> float:
        start_s = time.perf_counter()
        for _ in range(2):
            (rows_BD @ rows_BD.T) @ rows_BD
        return time.perf_counter() - start_s

    return lambda: statistics.median(products() for _ in range(_STEPS))


def cost(rounds: int, only: set[str], folder: Path) -> list[Row]:
    """Return the step of each loss on scores over that of `ssm`, and that of `directau` over its products."""
    shape = ["sampling.negatives=800", "sampling.shared=false", "train.batch_size=1024", "sampling.reject=false"]
    on_scores = [name for name in SETTINGS if "negative_BN" in losses[name]().needs() and name != "ssm"]
    found = []
    for name in (name for name in on_scores if not only or name in only):
        ours, theirs = steps(learner(name, shape, folder)), steps(learner("ssm", shape, folder))
        pairs = [(ours(), theirs()) if k % 2 else (theirs(), ours())[::-1] for k in range(rounds)]
        found.append(bar_row(f"{name}: step over that of ssm", [a / b for a, b in pairs], "x", most=1.15))
    if not only or "directau" in only:
        trainer = learner("directau", ["train.batch_size=4096"], folder)
        loss, products = steps(trainer), four_products(4096)
        computed = []
        for _ in range(rounds):
            trainer.timing()
            loss()
            computed.append(trainer.timing()["compute"] / _STEPS / products())
        found.append(bar_row("directau, batch 4096: forward and backward over four products", computed, "x", most=1.5))
    return found


def train(name: str, seconds: float, folder: Path) -> dict[str, Any]:
    """Train one loss. Return (seconds, epoch, validation NDCG@20) of each evaluation, and the test metrics at the end.

    Evaluations are at a tenth of the time and then every tenth.
    """
    trainer = learner(name, ["data.valid_fraction=0.1"], folder)
    config, source, spent, epoch, curve = trainer.config, trainer.source, 0.0, 0, []
    batches = stream(source, 0, 10**6, source.bytes_per_step, config.train.look_ahead_mib, "thread")
    while spent < seconds:
        start_s = time.perf_counter()
        loss_sum = trainer.train_epoch(epoch, 0, batches, lambda done, loss: None)
        spent, epoch = spent + time.perf_counter() - start_s, epoch + 1
        if spent >= seconds * (len(curve) + 1) / 10 or spent >= seconds:
            metrics = _evaluate(trainer, Part.VALID)
            curve.append((spent, epoch, metrics["ndcg@20"]))
            print(f"{name}: {spent:.0f} s, epoch {epoch}, loss {loss_sum / source.dataset.manifest.train:.4f}", metrics)
    return {
        "loss": name,
        "epoch_s": spent / epoch,
        "epochs": epoch,
        "curve": curve,
        "test": _evaluate(trainer, Part.TEST),
    }


def _evaluate(trainer: Trainer, part: Part) -> dict[str, float]:
    config = trainer.config.eval
    return evaluate_part(trainer.scorer, trainer.source.dataset, part, config, trainer.exchange).means()


def show(found: list[dict[str, Any]], plot: Path | None) -> None:
    """Print the results as a Markdown table, by test NDCG@20, and save the curves."""
    print("| loss | s an epoch | epochs | validation NDCG@20 | test Recall@20 / NDCG@20, % | published |")
    print("|---|---|---|---|---|---|")
    found = sorted(found, key=lambda result: -result["test"]["ndcg@20"])
    for r in found:
        test = f"{100 * r['test']['recall@20']:.2f} / {100 * r['test']['ndcg@20']:.2f}"
        valid, published = r["curve"][-1][2], PUBLISHED.get(r["loss"], "")
        print(f"| `{r['loss']}` | {r['epoch_s']:.1f} | {r['epochs']} | {valid:.4f} | {test} | {published} |")
    if plot is None:
        return
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 6), layout="constrained")
    colors: Iterator[Any] = iter(pyplot.get_cmap("tab20").colors)  # type: ignore[attr-defined]
    for r in found:
        times, _, values = zip(*r["curve"], strict=True)
        axes.plot(times, values, marker=".", color=next(colors), label=r["loss"])
    axes.set(xlabel="seconds of training", ylabel="validation NDCG@20", title="MF on Gowalla, D = 64")
    axes.grid(alpha=0.3)
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(plot, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description="All losses with matrix factorisation on Gowalla.")
    parser.add_argument("what", choices=["cost", "train", "show"])
    parser.add_argument("files", nargs="*", type=Path, help="for show: results that train wrote")
    parser.add_argument("--only", default="", metavar="NAMES", help="losses, with commas between them")
    parser.add_argument("--rounds", type=int, default=7, help="for cost")
    parser.add_argument("--seconds", type=float, default=300, help="for train: of each loss")
    parser.add_argument("--threads", type=int, default=0, help="of torch; 0: all cores")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the results to FILE")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="save the curves as a picture")
    given = parser.parse_args()
    if given.threads:
        torch.set_num_threads(given.threads)
    only = set(filter(None, given.only.split(",")))
    with tempfile.TemporaryDirectory() as folder:
        if given.what == "cost":
            report(cost(given.rounds, only, Path(folder)), "Steps without Ray", given.json)
            return
        found = [result for file in given.files for result in json.loads(file.read_text())]
        if given.what == "train":
            packages = ", ".join(f"{name} {version}" for name, version in versions().items())
            print(f"{hardware()}; {packages}; {torch.get_num_threads()} threads")
            for name in SETTINGS:
                if not only or name in only:
                    found.append(train(name, given.seconds, Path(folder)))
                    if given.json:
                        given.json.write_text(json.dumps(found))
        show(found, given.plot)


if __name__ == "__main__":
    main()
