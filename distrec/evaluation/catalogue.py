"""Metrics of all recommended lists together: how much of the catalogue they use, and how popular it is."""

from collections.abc import Callable, Sequence

import numpy as np
import torch

from distrec.core.registry import Registry
from distrec.sharding.collectives import Exchange

CatalogueMetric = Callable[[np.ndarray, np.ndarray], float]
"""(count_V, degree_V) -> value, of the items that may be recommended: lists that hold each, training interactions."""

CATALOGUE_METRICS: Registry[CatalogueMetric] = Registry("catalogue metric")


def catalogue_metrics(
    ranked_UK: np.ndarray,
    ks: Sequence[int],
    names: Sequence[str],
    degree_V: np.ndarray,
    candidates: np.ndarray | None,
    exchange: Exchange,
) -> dict[str, float]:
    """Return metrics of the lists of all workers' users by `name@k`. Collective.

    Args:
        ranked_UK: lists of this worker's users; -1 where there is no recommendation.
        ks: cut-offs.
        names: metrics, from `CATALOGUE_METRICS`.
        degree_V: training interactions of each item.
        candidates: (items,) bool: the items that may be recommended; None: all.
        exchange: the group of workers.
    """
    if not names:
        return {}
    own_KV = np.stack([np.bincount(ranked_UK[:, :k].ravel() + 1, minlength=len(degree_V) + 1)[1:] for k in ks])
    count_KV = exchange.all_add(torch.from_numpy(own_KV).to(exchange.device)).cpu().numpy()
    if candidates is not None:
        count_KV, degree_V = count_KV[:, candidates], degree_V[candidates]
    return {
        f"{name}@{k}": CATALOGUE_METRICS[name](count_V, degree_V)
        for name in names
        for k, count_V in zip(ks, count_KV, strict=True)
    }


@CATALOGUE_METRICS.register("coverage")
def coverage(count_V: np.ndarray, degree_V: np.ndarray) -> float:
    """Return the share of the items that at least one list holds."""
    return np.count_nonzero(count_V) / max(1, len(count_V))


@CATALOGUE_METRICS.register("gini")
def gini(count_V: np.ndarray, degree_V: np.ndarray) -> float:
    """Return the Gini coefficient of the items' numbers of lists: 0 if all are equal, near 1 if a few have all."""
    n, total = len(count_V), int(count_V.sum())
    if not total:
        return 0.0
    weight_V = 2 * np.arange(1, n + 1) - n - 1
    return float(np.sort(count_V) @ weight_V) / (n * total)


@CATALOGUE_METRICS.register("popularity")
def popularity(count_V: np.ndarray, degree_V: np.ndarray) -> float:
    """Return the mean number of training interactions of a recommended item."""
    return float(count_V @ degree_V) / max(1, int(count_V.sum()))
