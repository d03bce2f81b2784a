"""Samplers: the configuration of trial n, as a function of the space, the seed, n and the trials before it.

Nothing is kept between calls, so that a resumed search chooses as an uninterrupted one.
"""

import logging
import warnings
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler, GPSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState, create_trial

from distrec.tuning.space import Range, Space, Values

_STARTUP = 8  # random trials before a model is fitted to them

_SAMPLERS: dict[str, Callable[[int], BaseSampler]] = {
    "random": lambda seed: RandomSampler(seed),
    "tpe": lambda seed: TPESampler(
        n_startup_trials=_STARTUP, multivariate=True, group=True, constant_liar=True, seed=seed
    ),
    "gp": lambda seed: GPSampler(n_startup_trials=_STARTUP, seed=seed, deterministic_objective=True),
}


@dataclass(frozen=True)
class Outcome:
    """Observation of a trial.

    Attributes:
        curve: (epoch, value) of each evaluation.
        state: `running`; `finished`; `stopped` early; or `failed`, which is no better than any other.
    """

    values: Values
    curve: Sequence[tuple[int, float]]
    state: str


def propose(space: Space, sampler: str, seed: int, number: int, before: Sequence[Outcome]) -> Values:
    """Return the values of trial `number` (from 0), given the outcomes of the trials before it in their order."""
    if sampler == "grid":
        return space.combinations()[number]
    cells = space.combinations(("grid",))
    draw = number // len(cells)  # the draws of random are equal in all cells
    optuna.logging.set_verbosity(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of samplers that optuna calls experimental
        made = _SAMPLERS[sampler](zlib.crc32(f"{seed} {draw if sampler == 'random' else number}".encode()))
        study = optuna.create_study(direction="maximize", sampler=made)
        if sampler != "random":
            study.add_trials([_frozen(space, sampler, outcome) for outcome in before])
        study.enqueue_trial(_params(space.ranges, cells[number % len(cells)]))
        return _suggest(space, study.ask())


def _suggest(space: Space, trial: optuna.Trial) -> Values:
    values: Values = {}
    for key_range in space.ranges:
        if space.is_active(key_range, values):
            values[key_range.key] = _draw(trial, key_range)
    return values


def _draw(trial: optuna.Trial, key_range: Range) -> Any:
    match distribution(key_range):
        case CategoricalDistribution(choices=choices):
            index = trial.suggest_categorical(key_range.key, choices)
            assert isinstance(index, int)
            return key_range.choices[index]
        case IntDistribution(low=low, high=high, step=step, log=log):
            return trial.suggest_int(key_range.key, low, high, step=step, log=log)
        case FloatDistribution(low=low, high=high, step=step, log=log):
            return trial.suggest_float(key_range.key, low, high, step=step, log=log)


def distribution(key_range: Range) -> BaseDistribution:
    """Return the distribution of a range; of a list, that of the index, as optuna allows only plain values."""
    low, high, step, log = key_range.low, key_range.high, key_range.step, key_range.kind.startswith("log")
    if key_range.choices:
        return CategoricalDistribution(range(len(key_range.choices)))
    if key_range.kind in ("int", "log_int"):
        return IntDistribution(int(low), int(high), log, int(step or 1))
    return FloatDistribution(low, high, log, step)


def _frozen(space: Space, sampler: str, outcome: Outcome) -> FrozenTrial:
    """Return a trial as optuna's samplers read it.

    TPE ranks pruned trials below complete ones, by the epoch that they reached, and those without a value last. A
    Gaussian process reads complete trials alone: there a failed one has the least value of a metric.
    """
    best = max((value for _, value in outcome.curve), default=0.0)
    failed = outcome.state == "failed"
    if outcome.state == "running":
        return _trial(space.ranges, outcome.values, TrialState.RUNNING, curve=outcome.curve)
    if outcome.state == "finished" or sampler == "gp":
        return finished_trial(space.ranges, outcome.values, 0.0 if failed else best)
    return _trial(space.ranges, outcome.values, TrialState.PRUNED, curve=() if failed else outcome.curve)


def finished_trial(ranges: Sequence[Range], values: Values, value: float) -> FrozenTrial:
    """Return a complete trial of optuna."""
    return _trial(ranges, values, TrialState.COMPLETE, value)


def _trial(
    ranges: Sequence[Range],
    values: Values,
    state: TrialState,
    value: float | None = None,
    curve: Sequence[tuple[int, float]] = (),
) -> FrozenTrial:
    return create_trial(
        state=state,
        value=value,
        params=_params(ranges, values),
        distributions={r.key: distribution(r) for r in ranges if r.key in values},
        intermediate_values=dict(curve),
    )


def _params(ranges: Sequence[Range], values: Values) -> dict[str, Any]:
    """Return values as optuna has them: of a list the index."""
    given = [r for r in ranges if r.key in values]
    return {r.key: r.choices.index(values[r.key]) if r.choices else values[r.key] for r in given}
