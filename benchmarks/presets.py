"""Each file of gradient descent of configs/papers, for some steps on a slice of its data: does it train and learn.

    python benchmarks/presets.py
    python benchmarks/presets.py --only bsl,prism_ --threads 1 --steps 1000

The slice has the 2,000 items with the most training interactions, and the users with the most of these, up to 50 a user
and 100,000 in all. An epoch of it has about a tenth of the steps, so the learning rate is ten times that of the file.

Prints for each file the mean loss of the first and of the last tenth of the steps, and NDCG@20 of the initial rows and
after the steps: on the validation part, or on the test part of a file without one. They do not compare with published
figures. A file has learnt if its loss is lower and its NDCG at least a quarter above that of the initial rows; exits
with 1 if one has not.

Without Ray, one worker on the CPU. DISTREC_DATA names the folder that holds gowalla/, yelp2018/ and ml-1m/.
"""

import argparse
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import torch
from measure.data import DATA_FOLDER
from report import hardware

from distrec.data.dataset import Part
from distrec.data.prepare import prepare
from distrec.evaluation.evaluator import evaluate_part
from distrec.training.config import load_config
from distrec.training.loop import make_learner
from distrec.training.trainer import Trainer

ROOT = Path(__file__).parents[1]
_ITEMS, _MOST, _INTERACTIONS, _FASTER = 2000, 50, 100_000, 10


class Found(NamedTuple):
    """What training a file came to."""

    seconds: float
    """Of the steps."""
    first: float
    """Mean loss of the first tenth of the steps."""
    last: float
    part: Part
    initial_ndcg: float
    ndcg: float

    @property
    def learnt(self) -> bool:
        """Whether the loss is lower, and the NDCG a quarter above that of the initial rows; False for NaN."""
        return self.last < self.first and self.ndcg > 1.25 * self.initial_ndcg


def run_files() -> list[Path]:
    """Return the run files of configs/papers, without those of solvers, which take no steps."""
    files = sorted((ROOT / "configs" / "papers").glob("*.yaml"))
    return [file for file in files if "optim" not in load_config(file).unused()]


def write_slice(source: Path, folder: Path) -> None:
    """Write the slice of a LightGCN folder, train.txt and test.txt, as another one."""
    train, test = (
        {words[0]: words[1:] for words in map(str.split, (source / f"{part}.txt").read_text().splitlines())}
        for part in ("train", "test")
    )
    counts = Counter(item for items in train.values() for item in items)
    kept = {item for item, _ in counts.most_common(_ITEMS)}
    train, test = ({user: [i for i in items if i in kept] for user, items in part.items()} for part in (train, test))
    # Lines are sorted by item: every n-th, not the first ones.
    train = {user: items[:: 1 + len(items) // _MOST] for user, items in train.items()}
    users, interactions = [], 0
    for user in sorted(train, key=lambda user: len(train[user]), reverse=True):
        if interactions < _INTERACTIONS:
            users.append(user)
            interactions += len(train[user])
    folder.mkdir()
    for name, part in (("train", train), ("test", test)):
        lines = [" ".join([user, *part[user]]) for user in users if part.get(user)]
        (folder / f"{name}.txt").write_text("\n".join(lines) + "\n")


def make_trainer(file: Path, folder: Path) -> Trainer:
    """Return the trainer of a run file on the slice of its data, which lies in `folder` from the first use on."""
    given = load_config(file)
    source = Path(given.data.source)  # gowalla, or gowalla/*.txt
    if not (folder / source.parts[0]).exists():
        write_slice(DATA_FOLDER / source.parts[0], folder / source.parts[0])
    overrides = [f"data.source={folder / source}", f"data.cache={folder}/cache", f"optim.lr={_FASTER * given.optim.lr}"]
    config = load_config(file, [*overrides, "train.workers=1"])
    trainer = make_learner(config, prepare(config.data, log=lambda text: None), torch.device("cpu"))
    assert isinstance(trainer, Trainer), trainer
    return trainer


def run(trainer: Trainer, steps: int) -> Found:
    """Train for some steps, over as many epochs as they take, and evaluate before and after."""
    source, config = trainer.source, trainer.config.eval.model_copy(update={"k": (20,)})
    part = Part.VALID if source.dataset.manifest.valid else Part.TEST

    def ndcg() -> float:
        return evaluate_part(trainer.scorer, source.dataset, part, config, trainer.exchange).means()["ndcg@20"]

    initial, start_s = ndcg(), time.perf_counter()
    losses = [trainer.step(source.batch(*divmod(step, source.steps))).item() for step in range(steps)]
    seconds, tenth = time.perf_counter() - start_s, max(1, steps // 10)
    return Found(seconds, fmean(losses[:tenth]), fmean(losses[-tenth:]), part, initial, ndcg())


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the files of configs/papers for some steps.")
    parser.add_argument("--only", default="", metavar="TEXTS", help="parts of the names of files, with commas")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--threads", type=int, default=0, help="of torch; 0: all cores")
    given = parser.parse_args()
    if given.threads:
        torch.set_num_threads(given.threads)
    files = [file for file in run_files() if any(text in file.stem for text in given.only.split(","))]
    print(f"{hardware()}; {torch.get_num_threads()} threads; {given.steps} steps\n")
    print("| run file | s | loss, first tenth | last tenth | NDCG@20 on | initial | after | learnt |")
    print("|---|---|---|---|---|---|---|---|")
    failed = False
    with tempfile.TemporaryDirectory() as folder:
        for file in files:
            found = run(make_trainer(file, Path(folder)), given.steps)
            failed |= not found.learnt
            shown = [f"{found.seconds:.0f}", f"{found.first:.4g}", f"{found.last:.4g}", found.part.name.lower()]
            shown += [f"{found.initial_ndcg:.4f}", f"{found.ndcg:.4f}", "yes" if found.learnt else "NO"]
            print(f"| {file.stem} | {' | '.join(shown)} |", flush=True)
    sys.exit(failed)


if __name__ == "__main__":
    main()
