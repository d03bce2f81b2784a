"""An epoch, or some steps, of a model of RecBole, with its configuration, data set, loaders, model and training loop.

python recbole_training.py FOLDER MODEL BATCH [STEPS]       without STEPS, whole epochs

FOLDER holds train.npz (user, item); the atomic files are written to it. TORCH_THREADS, a variable, is 2 by default.
"""

import importlib
import itertools
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.sparse import dok_matrix
from serve import serve

_DROPPED = {"float_": "float64", "complex_": "complex128", "unicode_": "str_"}  # names that numpy 2 removed
for _name, _now in _DROPPED.items():
    setattr(np, _name, getattr(np, _now))
dok_matrix._update = lambda self, values: self._dict.update(values)  # removed from scipy

from recbole.config import Config  # noqa: E402
from recbole.data import create_dataset, data_preparation  # noqa: E402
from recbole.trainer.trainer import Trainer  # noqa: E402
from recbole.utils import init_seed  # noqa: E402


def write_atomic(folder: Path) -> None:
    """Write the pairs as RecBole's atomic files. Validation and test, which it requires, get the first pair."""
    pairs = np.load(folder / "train.npz")
    lines = [f"{user}\t{item}" for user, item in zip(pairs["user"], pairs["item"], strict=True)]
    (folder / "pairs").mkdir(exist_ok=True)
    for part, content in (("train", lines), ("valid", lines[:1]), ("test", lines[:1])):
        text = "\n".join(["user_id:token\titem_id:token", *content])
        (folder / "pairs" / f"pairs.{part}.inter").write_text(text + "\n")


def start() -> Callable[[], dict[str, Any]]:
    """Prepare a training as in RecBole's `quick_start`, which would import Ray."""
    folder, name, batch, *count = Path(sys.argv[1]), *sys.argv[2:]
    write_atomic(folder)
    settings = {
        "data_path": str(folder),
        "benchmark_filename": ["train", "valid", "test"],
        "load_col": {"inter": ["user_id", "item_id"]},
        "embedding_size": 64,
        "train_batch_size": int(batch),
        "train_neg_sample_args": {"distribution": "uniform", "sample_num": 1, "dynamic": False},
        "worker": 0,
        "seed": 0,
        "use_gpu": torch.cuda.is_available(),
        "show_progress": False,
        "checkpoint_dir": str(folder / "saved"),
    }
    model = getattr(importlib.import_module(f"recbole.model.general_recommender.{name.lower()}"), name)
    config = Config(model=name, dataset="pairs", config_dict=settings)
    init_seed(config["seed"], config["reproducibility"])
    train_data, _, _ = data_preparation(config, create_dataset(config))
    trainer = Trainer(config, model(config, train_data.dataset).to(config["device"]))
    epochs, steps = itertools.count(), int(count[0]) if count else 0
    batches = itertools.chain.from_iterable(itertools.repeat(train_data))

    def repeat() -> dict[str, Any]:
        start_s = time.perf_counter()
        loss = trainer._train_epoch(itertools.islice(batches, steps) if steps else train_data, next(epochs))
        seconds = time.perf_counter() - start_s
        return {"seconds": seconds / max(1, steps), "loss": loss / (steps or len(train_data))}

    return repeat


if __name__ == "__main__":
    torch.set_num_threads(int(os.environ.get("TORCH_THREADS", "2")))
    serve(start, ["recbole", "torch", "numpy"])
