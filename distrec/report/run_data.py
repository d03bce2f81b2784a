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
from distrec.evaluation.metrics import METRICS, hits, user_metrics
from distrec.evaluation.strata import ITEM_STRATA, strata_by_degree
from distrec.serve.ranker import Ranker
from distrec.serve.vectors import KeptVectors
from distrec.sharding.partition import Partition
from distrec.training.config import Config
from distrec.training.evaluate import load_checkpoint, open_run
from distrec.training.run_folder import Result, RunFolder


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
    """Norm of each vector, of `users` and of `items`; empty if the scores are not inner products."""

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
    return RunData(name, folder, config, dataset, result, history, len(history), part, values, norms)


def user_values(ranker: Ranker, dataset: Dataset, part: Part, config: Config) -> UserValues:
    """Return the metrics of the users evaluated, as `evaluate_part` means them."""
    m, trained_V = dataset.manifest, ranker.item_degrees > 0
    held_out, known, users = held_out_pairs(dataset, part, Partition(m.users, m.buckets, 1), 0)
    chosen_V = trained_V if config.eval.untrained_items == "exclude" else None
    ks = [*config.eval.k, *([int(config.watched.partition("@")[2])] if config.watched else [])]
    _, ranked_UK = ranker.rank(ranker.scorer, users, known, max(ks), chosen_V)
    relevant = held_out.indptr(len(users)), held_out.item
    strata = strata_by_degree(ranker.item_degrees), ITEM_STRATA
    found = user_metrics(ranked_UK, *relevant, list(dict.fromkeys(ks)), list(METRICS), strata)
    hits_V = np.bincount(ranked_UK[hits(ranked_UK, *relevant)[0]], minlength=m.items)
    return UserValues(users[found.row_U], found.values, hits_V, np.bincount(held_out.item, minlength=m.items))
