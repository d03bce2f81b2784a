"""The number of workers changes nothing: the same tables, optimizer state and losses after 20 steps, the same metrics.

Losses are also compared with golden curves, which a refactoring must leave as they are. After a numerical change record
them again, in a commit that says why, with `python -m tests.training.test_workers`.

Rounding differs between numbers of workers in three ways: the gradient of a row is summed over its pairs in another
order when they lie on several workers, each worker sums the losses of its own pairs, and matrix products of other
shapes round differently. Adam divides by the root of the second moment, so that a rounding difference of a gradient
near zero shows in full: hence 1e-5 where rows are of the order 0.1.
"""

import json
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch

from distrec.core.config import parse
from distrec.data.dataset import Part
from distrec.data.prepare import prepare
from distrec.evaluation.evaluator import evaluate_part
from distrec.sharding.checkpoint import load_shard
from distrec.sharding.partition import Partition
from distrec.testing.ranks import close_groups, run_ranks
from distrec.training.config import Config
from distrec.training.trainer import Trainer
from tests.conftest import SMALL, changed

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
# bfloat16 rounds a value halfway between two neighbours to either, for a difference in float32's last digit.
COARSER = {"sent_as_bfloat16": 500}
GOLDEN = Path(__file__).parent / "golden"
CURVES = GOLDEN / "curves.json"


def train_and_save(configs, dataset, folder):
    """Train each case for 20 steps and save it; return the losses of the steps, the metrics and the users by case."""
    results = {}
    for name, config in configs.items():
        trainer = Trainer(config, dataset, torch.device("cpu"))
        checkpoint = Path(folder, name, str(trainer.exchange.workers))
        checkpoint.mkdir(parents=True, exist_ok=True)
        losses = []
        batches = [trainer.source.batch(*divmod(k, trainer.source.steps)) for k in range(STEPS)]
        following = [*batches[1:5], None, *batches[6:], None]  # most look-ups are planned a step ahead, some are not
        for batch, ahead in zip(batches, following, strict=True):
            losses.append(trainer.exchange.all_sum([trainer.step(batch, ahead).item()])[0])
        found = evaluate_part(trainer.scorer, dataset, Part.TEST, config.eval, trainer.exchange)
        trainer.save(checkpoint, {})
        results[name] = (losses, found.means(), found.users)
    return results


def golden_config(small: Config) -> Config:
    """Return the configuration of the golden curves: that of `small` on the interactions in the folder golden/."""
    return changed(small, data={"source": str(GOLDEN)})


def train_cases(config: Config, folder: Path, workers: int):
    """Train all cases on a number of workers; return what `train_and_save` returns on each rank."""
    dataset = prepare(config.data, log=lambda text: None)
    configs = {name: changed(config, **case) for name, case in CASES.items()}
    return run_ranks(workers, train_and_save, configs, dataset, folder, timeout_s=100)


@pytest.fixture(scope="module")
def by_workers(small, tmp_path_factory):
    """(folder of the checkpoints, results of each rank by number of workers)."""
    folder, config = tmp_path_factory.mktemp("saved"), golden_config(small)
    return folder, {w: train_cases(config, folder, w) for w in (1, 2, 3)}


@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.parametrize("name", CASES)
def test_losses_and_metrics(by_workers, name, workers):
    _, results = by_workers
    losses, metrics, users = results[1][0][name]
    golden = json.loads(CURVES.read_text())[name][str(workers)]
    for rank in results[workers]:
        assert np.allclose(rank[name][0], losses, rtol=2e-6 * COARSER.get(name, 1), atol=0)
        assert np.allclose(rank[name][0], golden, rtol=2e-6 * COARSER.get(name, 1), atol=0)
        assert rank[name][1] == pytest.approx(metrics, abs=1e-9 if name not in COARSER else 0.01)
        assert rank[name][2] == users
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("workers", [2, 3])
@pytest.mark.parametrize("name", CASES)
def test_tables_and_optimizer_state(by_workers, dataset, name, workers):
    folder, _ = by_workers
    m = dataset.manifest  # the golden data has the users, items and buckets of `dataset`
    partitions = {"users": Partition(m.users, m.buckets, 1), "items": Partition(m.items, m.buckets, 1)}
    (one, meta, _), (several, meta_several, _) = (
        load_shard(folder / name / str(w), 0, partitions) for w in (1, workers)
    )
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
    before = {name: table.stored_VD.double().requires_grad_() for name, table in trainer.tables.items()}
    batch = trainer.source.batch(0, 0)
    trainer.step(batch)
    normalized = {name: torch.nn.functional.normalize(rows, dim=1) for name, rows in before.items()}
    user = torch.from_numpy(batch.users_U[batch.user_index_B]).long()
    item = torch.from_numpy(batch.items_U).long()
    users_BD, positive_BD = normalized["users"][user], normalized["items"][item[batch.positive_index_B]]
    negatives_BN = item[batch.negative_index].view(1 if shared else len(user), 60).expand(len(user), 60)
    logits_BN = torch.einsum("bd,bnd->bn", users_BD, normalized["items"][negatives_BN]) / 0.1
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
    for name, table in trainer.tables.items():
        assert torch.allclose(table.stored_VD.double(), before[name] - before[name].grad, atol=2e-6)


def test_the_seed_reaches_rows_and_batches(small, dataset):
    one, other = (Trainer(changed(small, run={"seed": s}), dataset, torch.device("cpu")) for s in (0, 1))
    assert not torch.equal(one.tables["items"].stored_VD, other.tables["items"].stored_VD)
    assert not np.array_equal(one.source.batch(0, 0).users_U, other.source.batch(0, 0).users_U)


def record() -> None:
    """Write the golden curves of the code as it is."""
    with tempfile.TemporaryDirectory() as folder:
        config = golden_config(changed(parse(Config, SMALL), data={"cache": folder}))
        results = {workers: train_cases(config, Path(folder), workers)[0] for workers in (1, 2, 3)}
        close_groups()
    curves = {name: {w: results[w][name][0] for w in results} for name in CASES}
    CURVES.write_text(json.dumps(curves, indent=1) + "\n")


if __name__ == "__main__":
    record()
