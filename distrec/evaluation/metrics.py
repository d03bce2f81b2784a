"""Ranking metrics per user, as sums that can be added over workers.

A metric is a pure function of the hits in each user's list. A new one (precision, MRR) is one function under `METRICS`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

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

# A user's value is rounded to a multiple of 2^-32. Sums of such numbers are exact in float64 up to 2^21 (2 million
# users at 1.0), so they are bit-equal in whatever order blocks and workers are added.
_RESOLUTION = 2.0**32


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

    @property
    def untrained_share(self) -> float:
        """Share of the held-out interactions whose item has no training interaction, in [0, 1]."""
        return self.untrained / max(1, self.relevant)

    def means(self) -> dict[str, float]:
        """Return {"recall@20": 0.159, ...}, averaged over the users with a relevant item.

        Raises:
            UserError: there is no such user.
        """
        if not self.users:
            raise UserError(
                f"nothing to evaluate: none of the {self.left_out} users has a relevant item; check the split"
            )
        return {name: total / self.users for name, total in self.sums.items()}


def ranking_sums(
    ranked_UK: Ints, indptr: Ints, indices: Ints, ks: Sequence[int], names: Sequence[str] = ("recall", "ndcg")
) -> RankingSums:
    """Return sums of metrics over users.

    Args:
        ranked_UK: item ids, best first, distinct in a row; -1 where there is no recommendation. Ranks beyond its
            columns count as misses.
        indptr: (U + 1,) ascending; user u's relevant items are `indices[indptr[u]:indptr[u + 1]]`, in any order. A
            repeated item counts once.
        indices: item ids, 0 or above.
        ks: cut-offs, each at least 1.
        names: metrics, from `METRICS`.

    Raises:
        UserError: an unknown metric, or a cut-off below 1.
    """
    assert ranked_UK.ndim == 2 and len(indptr) == len(ranked_UK) + 1, (ranked_UK.shape, indptr.shape)
    assert indptr[0] == 0 and indptr[-1] == len(indices), "indptr does not cover the indices"
    if any(k < 1 for k in ks):
        raise UserError(f"a cut-off must be at least 1; got {list(ks)}")
    hits_UK, relevant_U = _hits(ranked_UK, indptr, indices)
    kept_U = relevant_U > 0
    hits_UK, relevant_U = hits_UK[kept_U], relevant_U[kept_U]
    sums = {}
    for name in names:
        metric = METRICS[name]
        for k in ks:
            value_U = metric(hits_UK[:, :k], relevant_U, k)
            sums[f"{name}@{k}"] = float(np.rint(value_U * _RESOLUTION).sum() / _RESOLUTION)
    return RankingSums(sums, len(relevant_U), len(kept_U) - len(relevant_U), int(relevant_U.sum()))


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


def _hits(ranked_UK: Ints, indptr: Ints, indices: Ints) -> tuple[Bools, Ints]:
    """Return which entries of `ranked_UK` are relevant, and the number of distinct relevant items per user."""
    users, width = ranked_UK.shape
    # One integer key per (user, item), so that one binary search serves all users.
    stride = 1 + max(indices.max(initial=0), ranked_UK.max(initial=0))
    keys = np.unique(np.repeat(np.arange(users), np.diff(indptr)) * stride + indices)
    relevant_U = np.bincount(keys // stride, minlength=users)
    if not len(keys):
        return np.zeros((users, width), bool), relevant_U
    wanted_UK = np.arange(users)[:, None] * stride + ranked_UK
    index_UK = np.searchsorted(keys, wanted_UK).clip(max=len(keys) - 1)
    return (keys[index_UK] == wanted_UK) & (ranked_UK >= 0), relevant_U
