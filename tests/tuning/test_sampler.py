"""Samplers: functions of seed and number, the distributions of random, and models that learn."""

import math

import numpy as np
import pytest
from scipy.stats import chisquare, kstest

from distrec.core.config import parse
from distrec.training.config import Config
from distrec.tuning.sampler import Outcome, propose
from distrec.tuning.space import make_space

BASE = parse(Config, {"optim": {"decay": {"scope": "full"}}})
RANGES = {
    "optim.lr": {"log_uniform": [1e-4, 1e-1]},
    "loss.temperature": {"uniform": [0.05, 0.35]},
    "sampling.negatives": {"log_int": [1, 64]},
    "model.dim": {"int": [8, 32, 8]},
    "optim.decay.scope": {"choice": ["full", "in_batch", "none"]},
    "optim.decay.strength": {"quantised": [0.0, 0.1, 0.02], "when": {"optim.decay.scope": ["full", "in_batch"]}},
}


def test_random_draws_from_its_ranges():
    space = make_space(BASE, RANGES)
    draws = [propose(space, "random", 0, n, []) for n in range(2000)]
    column = {key: [d[key] for d in draws if key in d] for key in RANGES}
    log_lr = (np.log(column["optim.lr"]) - math.log(1e-4)) / math.log(1e3)
    assert kstest(log_lr, "uniform").pvalue > 1e-3
    assert kstest((np.array(column["loss.temperature"]) - 0.05) / 0.3, "uniform").pvalue > 1e-3
    assert {min(column["sampling.negatives"]), max(column["sampling.negatives"])} == {1, 64}
    assert np.median(column["sampling.negatives"]) < 12  # 8 is the middle of the logarithms, 32 of the numbers
    counts = np.unique(column["model.dim"], return_counts=True)
    assert list(counts[0]) == [8, 16, 24, 32] and chisquare(counts[1]).pvalue > 1e-3
    assert set(np.round(column["optim.decay.strength"], 9)) == {0.0, 0.02, 0.04, 0.06, 0.08, 0.1}
    assert all(("optim.decay.strength" in d) == (d["optim.decay.scope"] != "none") for d in draws)


@pytest.mark.parametrize("sampler", ["random", "tpe", "gp"])
def test_a_proposal_is_a_function_of_seed_number_and_history(sampler):
    space = make_space(BASE, RANGES)
    history = [
        Outcome(propose(space, "random", 1, n, []), [(1, 0.1 * n)], ("finished", "stopped", "failed", "running")[n % 4])
        for n in range(12)
    ]
    first = propose(space, sampler, 3, 12, history)
    assert first == propose(space, sampler, 3, 12, history)
    reordered = make_space(BASE, dict(reversed(RANGES.items())))
    assert first == propose(reordered, sampler, 3, 12, history)
    assert first != propose(space, sampler, 4, 12, history) and first != propose(space, sampler, 3, 13, history)
    if sampler == "random":
        assert first == propose(space, sampler, 3, 12, [])


@pytest.mark.parametrize("sampler", ["tpe", "gp"])
@pytest.mark.long
def test_a_model_finds_the_optimum(sampler):
    """Most of the last ten of 30 trials are among the best third of random ones."""
    space = make_space(BASE, {key: RANGES[key] for key in ("optim.lr", "loss.temperature")})

    def value(values):
        return 1 - abs(math.log10(values["optim.lr"]) + 2) / 3 - abs(values["loss.temperature"] - 0.2)

    found, drawn = [], [value(propose(space, "random", 9, n, [])) for n in range(200)]
    for seed in range(3):
        history = []
        for number in range(30):
            values = propose(space, sampler, seed, number, history)
            history.append(Outcome(values, [(1, value(values))], "finished"))
        found += [outcome.curve[0][1] for outcome in history[-10:]]
    assert np.median(found) > np.quantile(drawn, 0.65)


def test_a_grid_key_is_crossed_with_the_draws_of_random():
    space = make_space(BASE, {"optim.lr": RANGES["optim.lr"], "loss.log_q": {"grid": [True, False]}})
    draws = [propose(space, "random", 0, n, []) for n in range(6)]
    assert [d["loss.log_q"] for d in draws] == [True, False] * 3
    rates = [d["optim.lr"] for d in draws]
    assert rates[::2] == rates[1::2] and len(set(rates)) == 3
