"""Training steps without Ray, or a ranking of all users, by the checkout of distrec on PYTHONPATH.

python checkout.py FOLDER CHECKOUT steps COUNT [key=value ...]
python checkout.py FOLDER CHECKOUT ranking K [key=value ...]

Supports the module layouts of version 0.1.0 and later: names that have moved are listed with the newest first.
"""

import importlib
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from serve import serve

sys.path.append(str(Path(__file__).parents[1]))
from measure.steps import median_step

_WARM_UP, _BATCHES = 10, 16
_BUCKETS = 64


def import_first(*candidates: str) -> Any:
    """Return the first of these `module:name` that exists.

    Raises:
        ImportError: none exists.
    """
    for candidate in candidates:
        path, _, name = candidate.partition(":")
        try:
            module = importlib.import_module(path)
        except ModuleNotFoundError as error:
            if not str(error.name).startswith("distrec"):
                raise
            continue
        if hasattr(module, name):
            return getattr(module, name)
    raise ImportError(f"this checkout has none of {', '.join(candidates)}")


def start() -> Callable[[], dict[str, Any]]:
    """Check that the checkout is the one imported, and prepare what its row measures."""
    (_, checkout, kind, count), overrides = sys.argv[1:5], sys.argv[5:]
    # The finder of an editable installation would supply modules that this checkout lacks, from another one.
    sys.meta_path[:] = [
        finder for finder in sys.meta_path if "__editable__" not in str(getattr(finder, "__module__", ""))
    ]
    file = Path(str(importlib.import_module("distrec").__file__)).resolve()
    if not file.is_relative_to(Path(checkout).resolve()):
        raise ImportError(f"distrec was imported from {file}, not from {checkout}")
    load = import_first("distrec.core.config:load", "distrec.config:load")
    config = load(import_first("distrec.training.config:Config", "distrec.train.config:Config"), None, overrides)
    dataset = import_first("distrec.data.prepare:prepare")(config.data)
    return steps(config, dataset, int(count)) if kind == "steps" else ranking(dataset, int(count), config.model.dim)


def steps(config: Any, dataset: Any, count: int) -> Callable[[], dict[str, Any]]:
    """Return a function that measures the median step of `count`, over a few batches computed in advance."""
    trainer_class = import_first("distrec.training.trainer:Trainer", "distrec.train.trainer:Trainer")
    trainer = trainer_class(config, dataset, torch.device("cpu"))
    measure = median_step(trainer, _BATCHES, _WARM_UP, count)
    return lambda: {"seconds": measure()}


def ranking(dataset: Any, k: int, dim: int) -> Callable[[], dict[str, Any]]:
    """Return a function that measures the top-K ranking of all users, on random factors."""
    pairs_class = import_first("distrec.evaluation.ranking:UserItemPairs", "distrec.evaluation.ranking:Pairs")
    partition_class = import_first("distrec.sharding.partition:Partition", "distrec.plan:Plan")
    exchange_class = import_first("distrec.sharding.collectives:Exchange", "distrec.tables.exchange:Exchange")
    rank = import_first("distrec.evaluation.ranking:rank")
    part = import_first("distrec.data.dataset:Part")
    torch.manual_seed(0)
    users_UD, items_VD = (torch.randn(rows, dim) for rows in (dataset.manifest.users, dataset.manifest.items))
    user, item = dataset.interactions(part.TRAIN, range(dataset.manifest.buckets))
    order = np.lexsort((item, user))
    known = pairs_class(user[order].astype(np.int64), item[order].astype(np.int64))
    partition, exchange = partition_class(len(items_VD), _BUCKETS, 1), exchange_class(torch.device("cpu"))

    def repeat() -> dict[str, Any]:
        start_s = time.perf_counter()
        rank(users_UD, known, items_VD, partition, exchange, k)
        return {"seconds": time.perf_counter() - start_s}

    repeat()  # warm-up
    return repeat


if __name__ == "__main__":
    serve(start, ["torch", "numba", "numpy"])
