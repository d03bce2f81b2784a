"""Planned memory, beside what real tables and optimizers hold."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from distrec.models.base import DataSizes
from distrec.training.planning.sizes import Sizes
from distrec.training.planning.worker_memory import device_rows, total_bytes, worker_memory
from distrec.training.trainer import Trainer
from tests.conftest import changed

CASES = {
    "adam": {"optim": {"rule": "adam"}},
    "rowwise": {"optim": {"rule": "rowwise_adagrad"}, "model": {"bfloat16": True}},
    "sgd_full_decay": {"optim": {"rule": "sgd", "decay": {"scope": "full", "strength": 0.01}}},
    "momentum": {"optim": {"rule": "momentum"}},
    "lazy_adam_l2": {"optim": {"decay": {"scope": "full", "coupling": "l2", "strength": 0.01}}},
    "tables_of_the_loss": {"loss": {"name": "mawu"}},
    "graph": {"model": {"name": "lightgcn"}, "optim": {"rule": "adam"}},
}


@pytest.mark.parametrize("name", CASES)
def test_tables_state_and_deferred_updates_are_exact(small, dataset, name):
    """Beside the coefficients of an epoch's steps, which are 24 to 64 bytes a step."""
    config = changed(small, **CASES[name])
    trainer = Trainer(config, dataset, torch.device("cpu"))
    planned = {part.name: part.bytes for part in worker_memory(config, Sizes.of(dataset), 1, gpu=False)}
    assert planned["tables"] == sum(table.stored_VD.nbytes for table in trainer.tables.values())
    slots = [slot for optimizer in trainer.optimizers.values() for slot in optimizer._rule.slots.values()]
    assert planned["optimizer state"] == sum(slot.nbytes for slot in slots)
    deferred = [table.deferred for table in trainer.tables.values() if hasattr(table.deferred, "_written_V")]
    held = sum(d._written_V.nbytes + d._steps.values_CS.nbytes for d in deferred)
    assert planned["deferred updates"] == held


def test_rows_that_move_are_updated_at_each_step_on_a_gpu(small, dataset):
    """No update is deferred there, and the tables of the entity are read whole."""
    sizes = replace(Sizes.of(dataset), users=200_000, items=300_000)
    config = changed(small, model={"dim": 64}, train={"batch_size": 64}, sampling={"negatives": 10})
    l2 = {"decay": {"scope": "full", "coupling": "l2", "strength": 0.01, "tables": {"users": 0.0}}}
    for optim, users, items in (({}, 64, 74), ({"rule": "adam"}, 200_000, 300_000), (l2, 64, 300_000)):
        moving = changed(config, optim=optim)
        assert device_rows(moving, sizes, 1) == {"users": users, "items": items}
        for gpu in (False, True):
            planned = {part.name: part.bytes for part in worker_memory(moving, sizes, 1, gpu=gpu)}
            assert (planned["deferred updates"] > 0) == (bool(optim) and not gpu)


def test_shards_of_workers_add_up_to_the_tables(small, dataset):
    sizes = Sizes.of(dataset)
    whole, part = (total_bytes(worker_memory(small, sizes, w, gpu=False), "device", certain=True) for w in (1, 4))
    assert part == pytest.approx(whole / 4, rel=0.05)


def test_planned_memory_of_ease_is_what_its_learner_checks(small, dataset):
    """Also debiased by `topk`, where c_u differs by user, and a second matrix is held."""
    m, degrees = dataset.manifest, np.unique(dataset.user_degrees())
    for options, matrices in (({}, 8), ({"debiased": True, "form": "topk", "k": 3}, 16), ({"precision": "float32"}, 4)):
        config = changed(small, model={"name": "ease", **options})
        learner = config.model.learner(dataset, 0, torch.device("cpu"))
        needed = config.model.needed_bytes(DataSizes(m.users, m.items, m.train, degrees, 1))["matrices of items"]
        columns = 0 if matrices == 4 else 4
        assert needed == learner.needed_bytes()[0] == m.items**2 * (matrices + columns)


@pytest.mark.parametrize("model", ["ials", "itemknn", "pop"])
def test_every_solver_has_a_plan_that_shrinks_with_workers(small, dataset, model):
    config, sizes = changed(small, model={"name": model}), Sizes.of(dataset)
    one, four = (total_bytes(worker_memory(config, sizes, w, gpu=False), "device", certain=True) for w in (1, 4))
    assert 0 < four <= one


def test_streams_in_processes_are_not_the_workers_memory(small, dataset):
    sizes = Sizes.of(dataset)
    for stream, location in (("thread", "host"), ("ray", "stream")):
        parts = worker_memory(changed(small, train={"stream": stream}), sizes, 1, gpu=False)
        assert {part.location for part in parts if part.name == "batches ahead"} == {location}
    assert any(
        p.location == "stream" for p in worker_memory(changed(small, train={"stream": "thread"}), sizes, 1, gpu=True)
    )
