"""Strata of the items by popularity, and groups of the users by activity (PRISM paper, App. B.2)."""

import numpy as np

ITEM_STRATA = ("popular", "neutral", "unpopular")
USER_GROUPS = ("active", "moderate", "inactive")
"""Names of the first 5 %, of the next 15 % and of the rest."""


def strata_by_degree(degree_V: np.ndarray) -> np.ndarray:
    """Return the stratum of each row, (V,) int8: 0 of the first ceil(0.05 V) rows by descending degree, ties by index,
    1 of those up to ceil(0.2 V), 2 of the rest."""
    rows = len(degree_V)
    rank_V = np.empty(rows, np.int64)
    rank_V[np.argsort(-degree_V, kind="stable")] = np.arange(rows)
    return np.searchsorted([-(-rows // 20), -(-rows // 5)], rank_V, side="right").astype(np.int8)
