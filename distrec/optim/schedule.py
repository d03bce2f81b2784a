"""Learning rate as a function of the step, and its factor as a function of the evaluations."""

import math
from collections.abc import Sequence

from distrec.optim.config import ScheduleConfig

_BETTER = 1e-4  # relative


def learning_rate(schedule: ScheduleConfig, lr: float, t: int, total_steps: int) -> float:
    """Return the learning rate of one step, in [0, lr].

    Args:
        schedule: the shape.
        lr: the peak.
        t: the step, from 1. Steps after `total_steps` have the final rate of linear and cosine.
        total_steps: steps of the whole run, warm-up included.
    """
    assert t >= 1, t
    if t <= schedule.warmup_steps:
        return lr * (t / schedule.warmup_steps)  # in this order lr is exact at t = warmup_steps
    since = t - 1 - schedule.warmup_steps  # steps since the warm-up
    if schedule.name == "step":
        return lr * schedule.factor ** (since // schedule.every_steps)
    if schedule.name in ("constant", "plateau"):
        return lr
    progress = min(1.0, since / max(1, total_steps - schedule.warmup_steps))
    fraction = progress if schedule.name == "linear" else (1.0 - math.cos(math.pi * progress)) / 2
    return lr * (1.0 - (1.0 - schedule.final_fraction) * fraction)


def plateau_factor(schedule: ScheduleConfig, values: Sequence[float]) -> float:
    """Return the factor of the learning rate after these evaluations, 1 for other schedules than `plateau`.

    As torch's `ReduceLROnPlateau(mode="max")`: a value counts as better from 1e-4 of the best on; the count of
    evaluations without a better one restarts when the factor is lowered.

    Args:
        schedule: the shape.
        values: watched metric of each evaluation, from the first on; higher is better.
    """
    factor, best, bad = 1.0, -math.inf, 0
    for value in values if schedule.name == "plateau" else ():
        if value > best * (1 + _BETTER):
            best, bad = value, 0
        else:
            bad += 1
        if bad > schedule.patience:
            factor, bad = max(factor * schedule.factor, schedule.final_fraction), 0
    return factor
