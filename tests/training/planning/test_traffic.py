"""Planned bytes and calls on the wire, beside those counted in real process groups."""

import pytest
import torch

from distrec.testing.ranks import run_ranks
from distrec.testing.wire import counted_bytes
from distrec.training.planning.sizes import Sizes, step_sizes
from distrec.training.planning.traffic import step_traffic
from distrec.training.trainer import Trainer
from tests.conftest import changed

STEPS = 12
CASES = {
    "shared": {},
    "own_negatives_as_bfloat16": {
        "sampling": {"shared": False, "negatives": 4},
        "train": {"send_bfloat16": True},
        "optim": {"clip_norm": 1.0},
    },
    "popularity": {"sampling": {"distribution": "popularity", "beta": 1.0, "negatives": 60}},
    "in_batch": {"sampling": {"distribution": "in_batch"}},
    "softmax": {"loss": {"name": "softmax"}},
    "directau": {"loss": {"name": "directau"}},
    "mawu": {"loss": {"name": "mawu"}},
    "occurrences": {"optim": {"decay": {"scope": "occurrences", "coupling": "l2", "strength": 0.01}}},
    "mlp": {"model": {"name": "mlp"}},
    "simplex": {"model": {"name": "simplex", "history": 5}},
    "attention": {"model": {"name": "simplex", "history": 5, "pooling": "user_attention"}},
    "lightgcn": {"model": {"name": "lightgcn", "layers": 2}},
}


def count(configs, dataset):
    """Return the bytes that this rank sends in a step, and the calls of a step, by case."""
    found = {}
    for name, config in configs.items():
        trainer = Trainer(config, dataset, torch.device("cpu"))
        batches = trainer.source.batches(0, 0, STEPS)
        trainer.step(batches[0])  # the graph is built at first
        with counted_bytes() as sent:
            for batch in batches:
                trainer.step(batch)
        found[name] = sum(sent) / STEPS, len(sent) / STEPS
    return found


@pytest.mark.parametrize("workers", [2, 3])
def test_bytes_and_calls_are_those_of_real_steps(small, dataset, workers):
    """To 5 %: the data are no independent draws. A collective that the plan lacks, or counts twice, is more."""
    configs = {name: changed(small, **case) for name, case in CASES.items()}
    counted, wrong = run_ranks(workers, count, configs, dataset), {}
    sizes = Sizes.of(dataset)
    for name, config in configs.items():
        planned = step_traffic(config, sizes, workers, step_sizes(config, sizes, workers))
        sent = sum(rank[name][0] for rank in counted) / workers
        figures = sum(c.bytes for c in planned) / sent, sum(c.calls for c in planned), counted[0][name][1]
        if abs(figures[0] - 1) > 0.05 or figures[1] != figures[2]:
            wrong[name] = figures
    assert wrong == {}


def test_one_worker_sends_nothing(small, dataset):
    sizes = Sizes.of(dataset)
    assert step_traffic(small, sizes, 1, step_sizes(small, sizes, 1)) == []
