"""What a report reads of a run: its result, history, per-user values, hits by item and norms of its vectors."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from distrec.core.config import flat
from distrec.data.dataset import Dataset, Part
from distrec.evaluation.evaluator import held_out_pairs
from distrec.evaluation.metrics import METRICS
from distrec.evaluation.ranking import UserItemPairs
from distrec.serve.ranker import Ranker
from distrec.serve.vectors import KeptVectors
from distrec.sharding.partition import Partition
from distrec.training.config import Config
from distrec.training.evaluate import checkpoint_of, load_checkpoint, open_run
from distrec.training.run_folder import Result, RunFolder

STRATA = ("popular", "neutral", "unpopular")
"""Items by descending training interactions, ties by code: the first 5 %, up to 20 %, and the rest (weight decay paper,
App. B.2)."""


@dataclass(frozen=True)
class UserValues:
    """Metrics of the users evaluated, by name such as `ndcg@20`; `ndcg@20/popular` is the part that hits of a stratum
    contribute, and the parts sum to the whole."""

    users: np.ndarray
    """Codes of the users, ascending."""
    values: Mapping[str, np.ndarray]
    hits_V: np.ndarray
    """Hits of each item in the lists of the largest K, (items,)."""
    held_out_V: np.ndarray
    """Held-out interactions of each item, (items,)."""


@dataclass(frozen=True)
class RunData:
    """A run that is reported."""

    name: str
    folder: RunFolder
    config: Config
    dataset: Dataset
    result: Result | None
    history: Sequence[dict[str, Any]]
    epoch: int
    part: Part
    """The test part, or the validation part of data without one."""
    test: UserValues
    norms: Mapping[str, np.ndarray] = field(default_factory=dict)
    """Norm of each vector, of `users` and of `items`; empty if the scores are no products of vectors."""

    @cached_property
    def degrees(self) -> dict[str, np.ndarray]:
        """Training interactions of each user and item."""
        return {"users": self.dataset.user_degrees(), "items": self.dataset.item_degrees()}

    @property
    def settings(self) -> dict[str, Any]:
        """The configuration by dotted keys."""
        return flat(self.config)

    @property
    def main_metric(self) -> str:
        """The metric by which runs are compared: the watched one, or NDCG at the first K."""
        return self.config.watched or f"ndcg@{self.config.eval.k[0]}"


def read_run(run: str | Path, name: str, note: Callable[[str], object]) -> RunData:
    """Read a run and rank with the checkpoint by which it is evaluated, in this process.

    Raises:
        UserError: no run, no checkpoint, data that are gone or have changed.
    """
    folder, config, dataset = open_run(run)
    loaded = load_checkpoint(folder, config, dataset, torch.device("cpu"), note)
    part = Part.TEST if dataset.manifest.test else Part.VALID
    kept = KeptVectors(loaded.scorer, dataset.manifest.users)
    vectors, norms = kept.all(), {}
    if vectors is not None:
        norms = {entity: rows.norm(dim=1).numpy() for entity, rows in zip(("users", "items"), vectors, strict=True)}
    values = user_values(Ranker(kept, loaded.exchange, dataset, config.eval.similarity), dataset, part, config)
    history, result = loaded.history, folder.result()
    epoch = len(history)
    if checkpoint_of(folder, config).parent.name == "best":
        epoch = history[-1]["epoch"]
    return RunData(name, folder, config, dataset, result, history, epoch, part, values, norms)


def user_values(ranker: Ranker, dataset: Dataset, part: Part, config: Config) -> UserValues:
    """Return the metrics of the users evaluated, as `evaluate_part` means them."""
    m, trained_V = dataset.manifest, ranker.item_degrees > 0
    held_out, known, users = held_out_pairs(dataset, part, Partition(m.users, m.buckets, 1), 0)
    chosen_V = trained_V if config.eval.untrained_items == "exclude" else None
    ks = [*config.eval.k, *([int(config.watched.partition("@")[2])] if config.watched else [])]
    _, ranked_UK = ranker.rank(ranker.scorer, users, known, max(ks), chosen_V)
    hit_UK, relevant_U = hits(ranked_UK, held_out), np.bincount(held_out.row, minlength=len(users))
    values, stratum_UK = {}, strata(ranker.item_degrees)[ranked_UK]
    for k in dict.fromkeys(ks):
        for name, metric in METRICS.items():
            values[f"{name}@{k}"] = metric(hit_UK[:, :k], relevant_U, k)
            if name in ("recall", "ndcg"):  # sums over hits
                for index, stratum in enumerate(STRATA):
                    of_stratum = hit_UK & (stratum_UK == index)
                    values[f"{name}@{k}/{stratum}"] = metric(of_stratum[:, :k], relevant_U, k)
    hits_V = np.bincount(ranked_UK[hit_UK], minlength=m.items)
    return UserValues(users, values, hits_V, np.bincount(held_out.item, minlength=m.items))


def hits(ranked_UK: np.ndarray, held_out: UserItemPairs) -> np.ndarray:
    """Return which entries of the lists are held-out items of their users, (U, K)."""
    stride = 1 + max(int(held_out.item.max(initial=0)), int(ranked_UK.max(initial=0)))
    listed_UK = np.arange(len(ranked_UK))[:, None] * stride + ranked_UK
    return np.isin(listed_UK, held_out.row * stride + held_out.item) & (ranked_UK >= 0)


def strata(degree_V: np.ndarray) -> np.ndarray:
    """Return the index in `STRATA` of each item."""
    rank_V = np.empty(len(degree_V), np.int64)
    rank_V[np.argsort(-degree_V, kind="stable")] = np.arange(len(degree_V))
    bounds = [-(-len(degree_V) // 20), -(-len(degree_V) // 5)]
    stratum_V: np.ndarray = np.searchsorted(bounds, rank_V, side="right")
    return stratum_V
