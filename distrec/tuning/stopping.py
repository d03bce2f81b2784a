"""Rules that stop trials early, as functions of the journal: they hold the same after a resume."""

import statistics
from collections.abc import Sequence

import numpy as np

Curve = Sequence[tuple[int, float]]
"""(epoch, value) of each evaluation of a trial, the first first; values are maximised."""

_FEWEST = 3  # other trials, for a median


def asha_stops(curve: Curve, others: Sequence[Curve], grace: int, reduction: int) -> bool:
    """Return whether asynchronous successive halving stops a trial at its last evaluation.

    Rungs are at `grace`, `grace * reduction`, `grace * reduction^2`, ... epochs. A trial that has come to a rung goes
    on if its value there is in the best 1/reduction of those of all trials that came to it before, its own included (Li
    et al., "A System for Massively Parallel Hyperparameter Tuning", MLSys 2020, in the stopping form of Ray Tune).
    """
    rung = grace
    while rung * reduction <= curve[-1][0]:
        rung *= reduction
    own = _at_rung(curve, rung)
    if own is None or own != curve[-1]:
        return False  # not there yet, or past it
    values = [point[1] for other in others if (point := _at_rung(other, rung)) is not None]
    return bool(values) and own[1] < float(np.percentile([*values, own[1]], 100 * (1 - 1 / reduction)))


def _at_rung(curve: Curve, rung: int) -> tuple[int, float] | None:
    """Return the first evaluation at the rung or after it."""
    return next((point for point in curve if point[0] >= rung), None)


def median_stops(curve: Curve, others: Sequence[Curve], grace: int) -> bool:
    """Return whether a trial's best value is below the median of the others' mean values up to the same epoch.

    Golovin et al., "Google Vizier", KDD 2017, section 3.2.2.
    """
    epoch = curve[-1][0]
    # Trials evaluated at this epoch or later.
    means = [statistics.fmean(v for e, v in other if e <= epoch) for other in others if other and other[-1][0] >= epoch]
    return epoch > grace and len(means) >= _FEWEST and max(v for _, v in curve) < statistics.median(means)
