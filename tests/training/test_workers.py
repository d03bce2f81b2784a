"""The number of workers changes nothing: same tables, optimizer state and losses after 20 steps, and the same metrics.

Rounding differs in three places: a row's gradient is summed over pairs in another order when the pairs lie on several
workers, each worker divides its own sum of losses, and matrix products of other shapes round differently. Adam
divides by the root of the second moment, so that a rounding difference of a gradient near zero shows in full: hence
1e-5 where the rows are of the order 0.1.
"""

from pathlib import Path

import numpy as np
import pytest
import torch

from distrec.data.dataset import Part
from distrec.sharding.checkpoint import load_shard
from distrec.sharding.partition import Partition
from distrec.testing.ranks import run_ranks
from distrec.training.trainer import Trainer
from tests.conftest import changed

STEPS = 20
CASES = {
    "ssm": {},
    "sent_as_bfloat16": {"train": {"send_bfloat16": True}},
    "in_batch": {"sampling": {"distribution": "in_batch"}, "loss": {"log_q": True}},
    "hardest_of_a_mixture": {
        "sampling": {"distribution": "mixture", "shared": False, "negatives": 12, "hardest": 3, "reject": False}
    },
    "softmax": {"loss": {"name": "softmax"}},
    "bpr_pairs": {
        "loss": {"name": "bpr"},
        "sampling": {"shared": False, "negatives": 3},
        "model": {"similarity": "dot"},
    },
    "full_decay": {
        "loss": {"log_q": True},
        "sampling": {"distribution": "popularity"},
        "optim": {
            "rule": "sgd",
            "lr": 1.0,
            "decay": {"scope": "full", "strength": 0.02},
            "schedule": {"name": "cosine"},
        },
    },
    "momentum_l2": {
        "optim": {"rule": "momentum", "lr": 0.3, "decay": {"scope": "full", "coupling": "l2", "strength": 0.01}}
    },
    "dense_adam": {"optim": {"rule": "adam", "lr": 0.01, "decay": {"scope": "full", "strength": 0.1}}},
    "rowwise_adagrad_l2": {
        "optim": {
            "rule": "rowwise_adagrad",
            "lr": 0.05,
            "decay": {"scope": "full", "coupling": "l2", "strength": 0.01},
        }
    },
    "adagrad_in_batch": {
        "sampling": {"reject": False},
        "optim": {"rule": "adagrad", "lr": 0.05, "decay": {"scope": "in_batch", "strength": 0.1}},
    },
}
# A value between two of bfloat16 goes to one or the other for a difference of float32's last digit.
COARSER = {"sent_as_bfloat16": 500}


def train_and_save(configs, dataset, folder):
    """Trains each case for 20 steps and saves it; returns the losses of the steps and the metrics."""
    results = {}
    for name, config in configs.items():
        trainer = Trainer(config, dataset, torch.device("cpu"))
        where = Path(folder, name, str(trainer.exchange.workers))
        where.mkdir(parents=True, exist_ok=True)
        losses = []
        batches = [trainer.source.batch(*divmod(k, trainer.source.steps)) for k in range(STEPS)]
        for batch, following in zip(
            batches, [*batches[1:5], None, *batches[6:], None], strict=True
        ):  # asked ahead or not
            losses.append(trainer.exchange.all_sum([trainer.step(batch, following).item()])[0] / batch.pairs)
        found = trainer.evaluate(Part.TEST)
        trainer.save(where, {})
        results[name] = (losses, found.means(), found.users)
    return results


@pytest.fixture(scope="module")
def by_workers(small, dataset, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    configs = {name: changed(small, **case) for name, case in CASES.items()}
    return folder, {w: run_ranks(w, train_and_save, configs, dataset, folder, timeout_s=100) for w in (1, 2, 3)}


@pytest.mark.parametrize("workers", [2, 3])
@pytest.mark.parametrize("name", CASES)
def test_losses_and_metrics(by_workers, name, workers):
    _, results = by_workers
    losses, metrics, users = results[1][0][name]
    for rank in results[workers]:
        assert np.allclose(rank[name][0], losses, rtol=2e-6 * COARSER.get(name, 1))
        assert rank[name][1] == pytest.approx(metrics, abs=1e-9 if name not in COARSER else 0.01)
        assert rank[name][2] == users
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("workers", [2, 3])
@pytest.mark.parametrize("name", CASES)
def test_tables_and_optimizer_state(by_workers, dataset, name, workers):
    folder, _ = by_workers
    m = dataset.manifest
    partitions = {"users": Partition(m.users, m.buckets, 1), "items": Partition(m.items, m.buckets, 1)}
    (one, meta), (several, meta_several) = (load_shard(folder / name / str(w), 0, partitions) for w in (1, workers))
    assert meta == meta_several and meta["optim"]["items"] == {"t": STEPS}
    for table in partitions:
        assert one[table].keys() == several[table].keys()
        for key, expected in one[table].items():
            error = (several[table][key] - expected).abs() / (1 + expected.abs())
            assert error.max() <= 1e-5 * COARSER.get(name, 1), (table, key)


@pytest.mark.parametrize("shared", [True, False])
def test_a_step_is_that_of_autograd_over_whole_tables(small, dataset, shared):
    """One step of SGD at rate 1 moves each row by minus its gradient, positives masked and log q corrected."""
    config = changed(
        small,
        optim={"rule": "sgd", "lr": 1.0},
        sampling={"shared": shared, "negatives": 60, "distribution": "popularity"},
        loss={"log_q": True},
    )
    trainer = Trainer(config, dataset, torch.device("cpu"))
    before = {name: part.table.stored_VD.double().requires_grad_() for name, part in trainer.parts.items()}
    batch = trainer.source.batch(0, 0)
    trainer.step(batch)
    unit = {name: torch.nn.functional.normalize(rows, dim=1) for name, rows in before.items()}
    user = torch.from_numpy(batch.users_U[batch.user_index_B]).long()
    item = torch.from_numpy(batch.items_U).long()
    users_BD, positive_BD = unit["users"][user], unit["items"][item[batch.positive_index_B]]
    negatives_BN = item[batch.negative_index].view(1 if shared else len(user), 60).expand(len(user), 60)
    logits_BN = torch.einsum("bd,bnd->bn", users_BD, unit["items"][negatives_BN]) / 0.1
    mass_V = torch.from_numpy(dataset.item_degrees().astype(float)) ** 0.75
    known_UV = torch.zeros(dataset.manifest.users, dataset.manifest.items, dtype=torch.bool)
    known_UV[tuple(torch.from_numpy(a).long() for a in dataset.interactions(Part.TRAIN, range(12)))] = True
    free_B = mass_V.sum() if shared else (~known_UV[user]).double() @ mass_V  # what a draw is a share of
    logits_BN = logits_BN - torch.log(60 * mass_V[negatives_BN] / free_B.view(-1, 1))
    hidden_BN = known_UV[user[:, None], negatives_BN]
    assert hidden_BN.any() == shared
    logits_BN = logits_BN.masked_fill(hidden_BN, -torch.inf)
    logits = torch.cat([(users_BD * positive_BD).sum(1, keepdim=True) / 0.1, logits_BN], 1)
    torch.nn.functional.cross_entropy(logits, torch.zeros(len(user), dtype=torch.long)).backward()
    for name, part in trainer.parts.items():
        assert torch.allclose(part.table.stored_VD.double(), before[name] - before[name].grad, atol=2e-6)


def test_the_seed_reaches_rows_and_batches(small, dataset):
    one, other = (Trainer(changed(small, run={"seed": s}), dataset, torch.device("cpu")) for s in (0, 1))
    assert not torch.equal(one.parts["items"].table.stored_VD, other.parts["items"].table.stored_VD)
    assert not np.array_equal(one.source.batch(0, 0).users_U, other.source.batch(0, 0).users_U)
