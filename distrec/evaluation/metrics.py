"""Ranking metrics of each user, and their sums, which can be added over workers.

A metric is a pure function of the hits in each user's list. A new one is one function under `METRICS`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from distrec.core.errors import UserError
from distrec.core.registry import Registry

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Metric = Callable[[Bools, Ints, int], Floats]
"""(hits_UK, relevant_U, k) -> value_U in [0, 1]. `hits_UK[u, r]`: is the item at rank r + 1 of user u relevant? It is
narrower than k if the catalogue is smaller. `relevant_U` counts each user's relevant items, at least 1."""

METRICS: Registry[Metric] = Registry("metric")
ADDITIVE = ("recall", "ndcg")
"""Metrics whose value is the sum of its parts by stratum of the items."""

# A user's value is rounded to a multiple of 2^-32. Sums of such numbers are exact in float64 up to 2^21 (2 million
# users at 1.0), so they are bit-equal in whatever order blocks and workers are added.
_RESOLUTION = 2.0**32


@dataclass(frozen=True)
class UserMetrics:
    """Metrics of each user that has a relevant item."""

    row_U: Ints
    """Rows of these users in the ranking, ascending."""
    relevant_U: Ints
    """Number of relevant items of each."""
    values: Mapping[str, Floats]
    """Values by `name@k`, and by `name@k/stratum`."""

    def sums(self) -> dict[str, float]:
        """Return the sum over the users by name, in multiples of 2^-32."""
        return {name: exact_sum(value_U) for name, value_U in self.values.items()}


def exact_sum(value_U: Floats) -> float:
    """Return the sum of the values that are not NaN, each rounded to a multiple of 2^-32."""
    return float(np.nansum(np.rint(value_U * _RESOLUTION)) / _RESOLUTION)


@dataclass(frozen=True)
class RankingSums:
    """Metrics summed over a set of users; the sums of several sets add up exactly."""

    sums: Mapping[str, float]
    """Sum over users by `name@k`."""
    users: int
    """Number of users with at least one relevant item, over which the sums run."""
    left_out: int
    """Number of users without a relevant item."""
    relevant: int = 0
    """Number of relevant items of all these users."""
    untrained: int = 0
    """How many of them have no training interaction."""
    group_users: Mapping[str, int] = field(default_factory=dict)
    """Number of users of each activity group, over which the sums `name@k/group` run."""
    others: Mapping[str, float] = field(default_factory=dict)
    """Figures that are no means over users, by name: of the catalogue, of norms, bounds of intervals."""

    @property
    def untrained_share(self) -> float:
        """Share of the held-out interactions whose item has no training interaction, in [0, 1]."""
        return self.untrained / max(1, self.relevant)

    def means(self) -> dict[str, float]:
        """Return {"recall@20": 0.159, ...}, averaged over the users with a relevant item, and `others`.

        Raises:
            UserError: there is no such user.
        """
        if not self.users:
            raise UserError(
                f"nothing to evaluate: none of the {self.left_out} users has a relevant item; check the split"
            )
        users = {name: self.group_users.get(name.partition("/")[2], self.users) for name in self.sums}
        means = {name: total / users[name] for name, total in self.sums.items() if users[name]}
        return means | dict(self.others)


def ranking_sums(
    ranked_UK: Ints, indptr: Ints, indices: Ints, ks: Sequence[int], names: Sequence[str] = ("recall", "ndcg")
) -> RankingSums:
    """Return sums of metrics over users; arguments and errors as of `user_metrics`."""
    found, users = user_metrics(ranked_UK, indptr, indices, ks, names), len(ranked_UK)
    return RankingSums(found.sums(), len(found.row_U), users - len(found.row_U), int(found.relevant_U.sum()))


def user_metrics(
    ranked_UK: Ints,
    indptr: Ints,
    indices: Ints,
    ks: Sequence[int],
    names: Sequence[str] = ("recall", "ndcg"),
    strata: tuple[Ints, Sequence[str]] | None = None,
) -> UserMetrics:
    """Return metrics of each user with a relevant item.

    Args:
        ranked_UK: item ids, best first, distinct in a row; -1 where there is no recommendation. Ranks beyond its
            columns count as misses.
        indptr: (U + 1,) ascending; user u's relevant items are `indices[indptr[u]:indptr[u + 1]]`, in any order. A
            repeated item counts once.
        indices: item ids, 0 or above.
        ks: cut-offs, each at least 1.
        names: metrics, from `METRICS`.
        strata: (stratum of each item, names of the strata): also return the parts of the additive metrics that hits of
            each stratum make up (PRISM paper, App. B.2). The parts sum to the whole.

    Raises:
        UserError: an unknown metric, or a cut-off below 1.
    """
    assert ranked_UK.ndim == 2 and len(indptr) == len(ranked_UK) + 1, (ranked_UK.shape, indptr.shape)
    assert indptr[0] == 0 and indptr[-1] == len(indices), "indptr does not cover the indices"
    if any(k < 1 for k in ks):
        raise UserError(f"a cut-off must be at least 1; got {list(ks)}")
    hits_UK, relevant_U = hits(ranked_UK, indptr, indices)
    (row_U,) = np.nonzero(relevant_U)
    hits_UK, relevant_U = hits_UK[row_U], relevant_U[row_U]
    parts = {"": hits_UK}
    if strata is not None:
        stratum_UK = strata[0][ranked_UK[row_U]]
        parts |= {f"/{name}": hits_UK & (stratum_UK == g) for g, name in enumerate(strata[1])}
    values = {
        f"{name}@{k}{part}": METRICS[name](hits_UK[:, :k], relevant_U, k)
        for name in names
        for k in ks
        for part, hits_UK in parts.items()
        if not part or name in ADDITIVE
    }
    if strata is not None:
        _check_parts(values, strata[1])
    return UserMetrics(row_U, relevant_U, values)


def _check_parts(values: Mapping[str, Floats], strata: Sequence[str]) -> None:
    for name, value_U in values.items():
        if f"{name}/{strata[0]}" in values:
            parts_U = sum(values[f"{name}/{stratum}"] for stratum in strata)
            assert np.abs(parts_U - value_U).max(initial=0) < 1e-12, f"the strata of {name} do not sum to the whole"


def check_user_metric(metric: str, given: str = "") -> None:
    """Raise ValueError if this is no `name@k` of `METRICS` with k at least 1. `given`: the metric as it was written."""
    name, _, k = metric.partition("@")
    if name not in METRICS or not k.isdecimal() or int(k) < 1:
        known = " or ".join(f"{m}@20" for m in METRICS)
        raise ValueError(f"{given or metric!r} is not a validation metric; write {known}")


@METRICS.register("recall")
def recall(hits_UK: Bools, relevant_U: Ints, k: int) -> Floats:
    """Return Recall@K = hits in the first K / |relevant|."""
    recall_U: Floats = hits_UK.sum(1) / relevant_U
    return recall_U


@METRICS.register("ndcg")
def ndcg(hits_UK: Bools, relevant_U: Ints, k: int) -> Floats:
    """Return NDCG@K with binary gains: DCG, the sum of 1 / log2(rank + 1) over hits, divided by the DCG of
    min(K, |relevant|) hits at the top."""
    discount_K = 1.0 / np.log2(np.arange(2, k + 2))
    ideal_K = discount_K.cumsum()
    ndcg_U: Floats = hits_UK @ discount_K[: hits_UK.shape[1]] / ideal_K[np.minimum(relevant_U, k) - 1]
    return ndcg_U


@METRICS.register("precision")
def precision(hits_UK: Bools, relevant_U: Ints, k: int) -> Floats:
    """Return Precision@K = hits in the first K / K."""
    precision_U: Floats = hits_UK.sum(1) / k
    return precision_U


@METRICS.register("hit_rate")
def hit_rate(hits_UK: Bools, relevant_U: Ints, k: int) -> Floats:
    """Return 1 where there is a hit in the first K."""
    return np.asarray(hits_UK.any(1), np.float64)


@METRICS.register("mrr")
def mrr(hits_UK: Bools, relevant_U: Ints, k: int) -> Floats:
    """Return 1 / rank of the first hit in the first K; 0 without one."""
    if not hits_UK.shape[1]:
        return np.zeros(len(hits_UK))
    reciprocal_U: Floats = hits_UK.any(1) / (1 + hits_UK.argmax(1))
    return reciprocal_U


@METRICS.register("map")
def average_precision(hits_UK: Bools, relevant_U: Ints, k: int) -> Floats:
    """Return AP@K, the sum over hits in the first K of Precision@rank, divided by |relevant| as trec_eval does."""
    precision_UK = hits_UK.cumsum(1) / np.arange(1, hits_UK.shape[1] + 1)
    average_U: Floats = np.where(hits_UK, precision_UK, 0.0).sum(1) / relevant_U
    return average_U


def hits(ranked_UK: Ints, indptr: Ints, indices: Ints) -> tuple[Bools, Ints]:
    """Return which entries of `ranked_UK` are relevant, and the number of distinct relevant items per user."""
    users, width = ranked_UK.shape
    # One integer key per (user, item), so that one binary search serves all users.
    stride = 1 + max(indices.max(initial=0), ranked_UK.max(initial=0))
    keys = np.repeat(np.arange(users), np.diff(indptr)) * stride + indices
    if (keys[1:] <= keys[:-1]).any():  # those of an evaluation are ascending and distinct
        keys = np.unique(keys)
    relevant_U = np.bincount(keys // stride, minlength=users)
    if not len(keys):
        return np.zeros((users, width), bool), relevant_U
    wanted_UK = np.arange(users)[:, None] * stride + ranked_UK
    index_UK = np.searchsorted(keys, wanted_UK).clip(max=len(keys) - 1)
    return (keys[index_UK] == wanted_UK) & (ranked_UK >= 0), relevant_U
