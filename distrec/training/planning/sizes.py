"""Sizes of a run: those of its data, and the expected ones of a training step.

C: classes of rows with the same number of training interactions.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from distrec.core.errors import UserError
from distrec.data.dataset import Dataset
from distrec.models.base import EmbeddingConfig
from distrec.sampling.config import SamplingConfig
from distrec.sharding.partition import Partition
from distrec.sharding.table import ITEMS, USERS
from distrec.training.config import Config
from distrec.training.loss_inputs import fetches_items

_CLASSES = 2000
_ITEM_OFFSET, _ITEM_EXPONENT, _USER_SIGMA = 20.0, 0.7, 0.9  # near to those of Gowalla


@dataclass(frozen=True)
class Degrees:
    """Rows of an entity by their number of training interactions."""

    rows_C: np.ndarray
    degree_C: np.ndarray

    @classmethod
    def of(cls, degrees: np.ndarray) -> "Degrees":
        """Return the degrees of some rows."""
        rows_by_degree = np.bincount(degrees)
        degree_C = np.flatnonzero(rows_by_degree)
        return cls(rows_by_degree[degree_C].astype(float), degree_C.astype(float))

    @classmethod
    def power_law(cls, items: int, interactions: int) -> "Degrees":
        """Return assumed degrees of items: the r-th most popular one, from 0, has a share like (r + 20)^-0.7."""
        edges = np.unique(np.round(np.geomspace(1, items + 1, _CLASSES))) - 1
        rows_C, share_C = np.diff(edges), ((edges[:-1] + edges[1:] - 1) / 2 + _ITEM_OFFSET) ** -_ITEM_EXPONENT
        return cls(rows_C, interactions * share_C / (rows_C @ share_C))

    @classmethod
    def log_normal(cls, users: int, interactions: int) -> "Degrees":
        """Return assumed degrees of users: log-normal, with sigma 0.9."""
        share_C = np.exp(_USER_SIGMA * np.sort(np.random.default_rng(0).standard_normal(min(users, _CLASSES))))
        rows_C = np.full(len(share_C), users / len(share_C))
        return cls(rows_C, interactions * share_C / (rows_C @ share_C))

    def shares(self, exponent: float = 1.0) -> np.ndarray:
        """Return the probability of a row of each class, in proportion to a power of its degree, (C,)."""
        weight_C = np.where(self.degree_C > 0, np.maximum(self.degree_C, 1e-9) ** exponent, 0.0)
        return np.asarray(weight_C / max(self.rows_C @ weight_C, 1e-300))


@dataclass(frozen=True)
class Sizes:
    """Sizes of a data set."""

    users: int
    items: int
    interactions: int
    """Training interactions."""
    held_out: int
    """Interactions of the larger of the other parts."""
    buckets: int
    user_degrees: Degrees
    item_degrees: Degrees

    @classmethod
    def of(cls, dataset: Dataset) -> "Sizes":
        """Return the sizes of prepared data."""
        m = dataset.manifest
        degrees = Degrees.of(dataset.user_degrees()), Degrees.of(dataset.item_degrees())
        return cls(m.users, m.items, m.train, max(m.valid, m.test), m.buckets, *degrees)

    @classmethod
    def assumed(cls, users: int, items: int, interactions: int, buckets: int) -> "Sizes":
        """Return sizes without data: degrees follow a law, and a quarter as many interactions are held out.

        Raises:
            UserError: there are no rows, or more interactions than pairs.
        """
        if min(users, items, interactions) < 1 or interactions > users * items:
            raise UserError(
                f"{interactions:,} interactions of {users:,} users with {items:,} items: give at least one of each, "
                "and no more interactions than pairs"
            )
        degrees = Degrees.log_normal(users, interactions), Degrees.power_law(items, interactions)
        return cls(users, items, interactions, interactions // 4, buckets, *degrees)

    def partition(self, entity: Literal["users", "items"], workers: int) -> Partition:
        """Return the partition of an entity.

        Raises:
            UserError: there are more workers than buckets.
        """
        if workers > self.buckets:
            raise UserError(
                f"{workers} workers are more than the data's {self.buckets} buckets: a worker would own no rows; "
                "use fewer workers, or more data.buckets"
            )
        return Partition(self.users if entity == USERS else self.items, self.buckets, workers)

    def owned(self, entity: Literal["users", "items"], workers: int) -> int:
        """Return the rows of an entity that the first worker owns: no other owns more."""
        return self.partition(entity, workers).size(0)


@dataclass(frozen=True)
class StepSizes:
    """Expected sizes of a training step at one worker."""

    steps: int
    """Steps of an epoch."""
    batch: float
    """Pairs of all workers."""
    pairs: float
    """Pairs of this worker, B / W."""
    own_scores: float
    """Scores of pairs with items of their own: positives, extra positives, negatives that are not shared."""
    shared_scores: float
    """Scores by matrix products: of shared negatives, or of the whole catalogue."""
    draws: float
    """Negatives and extra positives to draw."""
    users: float
    """Distinct users, or all rows where the model reads the graph. `items_read` likewise."""
    items: float
    """Distinct items that are requested of their owners, this worker included."""
    items_read: float
    """Distinct rows of this worker's items that the step reads, for any worker."""
    edges: float
    """Interactions of this worker's users if the model reads the graph, else 0."""


def step_sizes(config: Config, sizes: Sizes, workers: int) -> StepSizes:
    """Return the sizes of a step. Negatives that repeat, or repeat positives, are one row, which is fetched once."""
    model, needs, sampling = config.model, config.batch_needs, config.effective_sampling
    assert isinstance(model, EmbeddingConfig), model
    reads, graph = config.loss.needs(), "graph" in model.reads
    steps = max(1, -(-sizes.interactions // config.train.batch_size))
    batch = sizes.interactions / steps
    pairs, n = batch / workers, batch if sampling.distribution == "in_batch" else sampling.negatives
    users = _occupied(sizes.user_degrees, pairs * workers) / workers
    own = pairs * (1 + needs.extra_positives + (0 if sampling.shared else n))
    history = users * needs.history
    own_positives = sampling.distribution != "in_batch"  # there they are among the negatives
    positives = pairs * (own_positives + needs.extra_positives) + history
    drawn = n if sampling.shared else pairs * n
    all_drawn = n if sampling.shared else batch * n
    items = items_read = 0.0
    if fetches_items(reads, [t.name for t in config.loss.tables() if t.entity == ITEMS]) or "history" in model.reads:
        items = _distinct_items(sizes, sampling, positives, drawn)
        items_read = _distinct_items(sizes, sampling, positives * workers, all_drawn) / workers
    if graph or "catalogue" in reads:
        items_read = sizes.owned(ITEMS, workers)
    catalogue = batch * sizes.owned(ITEMS, workers) if "catalogue" in reads else 0.0
    return StepSizes(
        steps,
        batch,
        pairs,
        own,
        catalogue + (pairs * n if sampling.shared else 0.0),
        drawn + pairs * needs.extra_positives,
        float(sizes.owned(USERS, workers)) if graph else users,
        items,
        items_read,
        sizes.interactions / workers if graph else 0.0,
    )


def graph_columns(sizes: Sizes, workers: int) -> float:
    """Return the expected number of distinct items among the interactions of a worker's users."""
    return sizes.items if workers == 1 else _occupied(sizes.item_degrees, sizes.interactions / workers)


def _distinct_items(sizes: Sizes, sampling: SamplingConfig, positives: float, negatives: float) -> float:
    """Return the expected number of distinct items among positives and negatives drawn from their distributions."""
    degrees = sizes.item_degrees
    popular_C = degrees.shares(1.0 if sampling.distribution == "in_batch" else sampling.beta)
    uniform_share = {"uniform": 1.0, "mixture": sampling.uniform_share}.get(sampling.distribution, 0.0)
    negative_C = uniform_share / sizes.items + (1 - uniform_share) * popular_C
    return float(degrees.rows_C @ -np.expm1(positives * _log1m(degrees.shares()) + negatives * _log1m(negative_C)))


def _occupied(degrees: Degrees, draws: float) -> float:
    """Return the expected number of distinct rows among draws in proportion to the degrees."""
    return float(degrees.rows_C @ -np.expm1(draws * _log1m(degrees.shares())))


def _log1m(share_C: np.ndarray) -> np.ndarray:
    return np.asarray(np.log1p(-np.minimum(share_C, 1 - 1e-12)))
