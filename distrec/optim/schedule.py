"""Learning rate as a function of the step."""

import math

from distrec.optim.config import ScheduleConfig


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
    if schedule.name == "constant":
        return lr
    progress = min(1.0, since / max(1, total_steps - schedule.warmup_steps))
    fraction = progress if schedule.name == "linear" else (1.0 - math.cos(math.pi * progress)) / 2
    return lr * (1.0 - (1.0 - schedule.final_fraction) * fraction)
