"""One worker in this process: every loss finds planted structure, and a checkpoint carries the whole state."""

from pathlib import Path

import numpy as np
import pytest
import torch

from distrec.data import planted
from distrec.data.dataset import Part
from distrec.data.prepare import prepare
from distrec.evaluation.collapse import collapse_warning
from distrec.evaluation.evaluator import Evaluated, evaluate_part, held_out_pairs
from distrec.evaluation.metrics import ranking_sums
from distrec.losses import losses
from distrec.optim.dense_reference import DenseReference
from distrec.sharding.checkpoint import load_shard
from distrec.sharding.differentiable import StepExchange
from distrec.sharding.partition import Partition
from distrec.testing.ranks import run_ranks
from distrec.training.sharded_model import ShardedModel
from distrec.training.trainer import Trainer
from tests.conftest import changed

CPU = torch.device("cpu")
DOT = {"similarity": "dot", "init": {"std": 0.1}}
UNCORRECTED = {"reject": False, "negatives": 256}
# Settings of losses that need others than the defaults to do well on little data.
SETTINGS = {
    "bpr": {"model": DOT, "sampling": {"shared": False, "negatives": 4}},
    "ssm": {"sampling": {"negatives": 256}},
    "hinge": {"model": DOT},
    "bce": {"model": DOT},
    "mine": {"model": DOT},
    "simce": {"model": DOT, "optim": {"lr": 0.03}, "sampling": {"shared": False, "negatives": 2}},
    "ccl": {"loss": {"margin": 0.0, "weight": 3.0}},
    "generalized_contrastive": {"loss": {"margin": 0.0, "negative_weight": 3.0}},
    "mml": {"loss": {"margins": (0.2, 0.4), "margin_weights": (0.5, 0.5), "negative_weight": 10.0}},
    "contrastive": {"loss": {"margin": 1.2}},
    "bsl": {"loss": {"temperature": 0.2}},
    "debiased_infonce": {"loss": {"temperature": 0.5}, "sampling": UNCORRECTED},
    "debiased_mse": {"loss": {"negative_weight": 1.0}, "sampling": UNCORRECTED},
    "debiased_ccl": {"loss": {"margin": 0.0, "negative_weight": 0.3}, "sampling": UNCORRECTED},
    "directau": {"loss": {"gamma": 0.3}, "optim": {"lr": 0.03}},
    "ipl": {"model": DOT, "sampling": {"shared": False, "negatives": 4}},
    "resn": {"model": DOT, "sampling": {"shared": False, "negatives": 4}},
    "macr": {"model": {"name": "macr", **DOT}},
    "mawu": {"loss": {"user_weight": 0.15, "item_weight": 0.15}, "optim": {"lr": 0.03}},
}


@pytest.fixture(scope="module")
def preferences(small):
    """More data than `small`, with the NDCG@20 of the true preferences that made them and of popularity."""
    config = changed(
        small,
        data={"planted": {"users": 600, "items": 400, "interactions": 30_000}},
        model={"dim": 32},
        train={"epochs": 8, "batch_size": 1024},
    )
    dataset = prepare(config.data, log=lambda text: None)
    truth = planted.make(config.data.planted)
    users, items = (np.array(ids.to_pylist()).astype(int) for ids in (dataset.user_ids(), dataset.item_ids()))
    popularity = np.tile(dataset.item_degrees().astype(float), (len(users), 1))
    return config, dataset, ndcg_of(dataset, truth.scores(users)[:, items]), ndcg_of(dataset, popularity)


def ndcg_of(dataset, scores_UV):
    """Return NDCG@20 on the test part of a full matrix of scores, by sorting all of it in numpy."""
    known, test = np.zeros(scores_UV.shape, bool), np.zeros(scores_UV.shape, bool)
    for part in Part:
        (test if part == Part.TEST else known)[dataset.interactions(part, range(dataset.manifest.buckets))] = True
    ranked_UK = np.argsort(np.where(known, np.inf, -scores_UV), axis=1, kind="stable")[:, :20]
    row, item = np.nonzero(test)
    indptr = np.searchsorted(row, np.arange(len(test) + 1))
    return ranking_sums(ranked_UK, indptr, item, (20,)).means()["ndcg@20"]


def evaluate(trainer: Trainer) -> Evaluated:
    """Evaluate on the test part."""
    return evaluate_part(trainer.scorer, trainer.source.dataset, Part.TEST, trainer.config.eval, trainer.exchange)


OWN_LOSSES = [name for name, loss in losses.items() if loss.__module__.startswith("distrec.")]


@pytest.mark.parametrize("name", OWN_LOSSES)
@pytest.mark.long
def test_every_loss_learns_the_planted_preferences(preferences, name):
    config, dataset, best, popular = preferences
    sections = {key: section for key, section in SETTINGS.get(name, {}).items() if key != "loss"}
    loss = {"name": name, **SETTINGS.get(name, {}).get("loss", {})}
    trainer = Trainer(changed(config, loss=loss, **sections), dataset, CPU)
    for epoch in range(config.train.epochs):
        for batch in trainer.source.batches(epoch, 0, trainer.source.steps):
            trainer.step(batch)
    found = evaluate(trainer)
    assert 1.4 * popular < found.means()["ndcg@20"] < best
    assert collapse_warning(found.diagnostics | trainer.diagnostics(), []) is None


def test_evaluation_equals_a_sort_of_the_full_score_matrix(preferences):
    """The test part also hides validation items."""
    config, dataset, _, _ = preferences
    trainer = Trainer(config, dataset, CPU)
    trainer.step(trainer.source.batch(0, 0))
    users, items = (torch.nn.functional.normalize(table.flush(), dim=1) for table in trainer.tables.values())
    full = ndcg_of(dataset, (users @ items.T).numpy())
    assert evaluate(trainer).means()["ndcg@20"] == pytest.approx(full, abs=1e-6)


@pytest.mark.parametrize(("shared", "similarity"), [(True, "cosine"), (False, "cosine"), (True, "dot"), (False, "dot")])
def test_the_hardest_negatives_are_those_with_the_highest_scores(small, dataset, shared, similarity):
    sections = {"sampling": {"shared": shared, "negatives": 12, "hardest": 3}, "loss": {"name": "bpr"}}
    trainer = Trainer(changed(small, model={"similarity": similarity}, **sections), dataset, CPU)
    batch = trainer.source.batch(0, 0)
    users, items = (table.stored_VD for table in trainer.tables.values())
    users_BD = users[torch.from_numpy(batch.users_U[batch.user_index_B]).long()]
    items_UD = items[torch.from_numpy(batch.items_U).long()]
    if similarity == "cosine":
        users_BD, items_UD = (torch.nn.functional.normalize(rows, dim=1) for rows in (users_BD, items_UD))
    index_BN = torch.from_numpy(batch.negative_index).long().view(-1, 12).expand(len(users_BD), 12)
    scores_BN = torch.einsum("bd,bnd->bn", users_BD, items_UD[index_BN])
    scores_BN.view(-1)[torch.from_numpy(batch.masked)] = -torch.inf
    rows, plan = trainer._rows(batch, None)
    leaves = {name: table.read(rows[name]) for name, table in trainer.tables.items()}
    exchange = StepExchange(trainer.exchange)
    found = trainer.forward.inputs(batch, plan, leaves, exchange)
    expected = scores_BN.sort(dim=1, descending=True).values[:, :3]
    torch.testing.assert_close(found.negative_BN.sort(dim=1, descending=True).values, expected)
    torch.testing.assert_close(found.positive_B, (users_BD * items_UD[batch.positive_index_B.tolist()]).sum(1))
    assert torch.isfinite(trainer.step(batch))


@pytest.mark.parametrize("distribution", ["in_batch", "popularity"])
def test_the_own_positive_in_batch_is_no_draw(small, dataset, distribution):
    sampling = {"distribution": distribution, "negatives": 12}
    trainer = Trainer(changed(small, sampling=sampling, train={"batch_size": 256}), dataset, CPU)
    batch = trainer.source.batch(0, 0)
    rows, plan = trainer._rows(batch, None)
    leaves = {name: table.read(rows[name]) for name, table in trainer.tables.items()}
    exchange = StepExchange(trainer.exchange)
    found = trainer.forward.inputs(batch, plan, leaves, exchange)
    assert found.draws == (batch.pairs - 1 if distribution == "in_batch" else 12)


DECAY = {"optim": {"decay": {"scope": "full", "strength": 0.5}, "schedule": {"name": "linear"}}}
HALF, END = 10, 20


def run_steps(config, dataset, first, last, load, save):
    """Take steps `first` .. `last` (exclusive), with a checkpoint after HALF. One worker returns its tables."""
    trainer = Trainer(config, dataset, CPU)
    if load:
        assert trainer.load(Path(load)) == {"half": True, "optim": {"users": {"t": first}, "items": {"t": first}}}
    for k in range(first, last):
        trainer.step(trainer.source.batch(*divmod(k, trainer.source.steps)))
        if k + 1 == HALF:  # an uninterrupted run writes a checkpoint here too
            trainer.save(Path(save), {"half": True})
    if trainer.exchange.workers == 1:
        return {name: table.flush().clone() for name, table in trainer.tables.items()}


def test_a_resumed_run_gives_the_bits_of_an_uninterrupted_one(small, dataset, tmp_path):
    config = changed(small, **DECAY)
    whole = run_steps(config, dataset, 0, END, None, tmp_path)
    resumed = run_steps(config, dataset, HALF, END, tmp_path, None)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_a_checkpoint_loads_on_another_number_of_workers(small, dataset, tmp_path):
    config = changed(small, **DECAY)
    (tmp_path / "three").mkdir()
    run_ranks(3, run_steps, config, dataset, 0, HALF, None, tmp_path / "three")
    resumed = run_steps(config, dataset, HALF, END, tmp_path / "three", None)
    whole = run_steps(config, dataset, 0, END, None, tmp_path)
    assert all(torch.allclose(whole[name], resumed[name], rtol=1e-5, atol=1e-5) for name in whole)


def test_full_decay_reaches_rows_outside_every_batch(small, dataset):
    """A row outside every batch is its initial value times the product of the decays."""
    config = changed(small, optim={"lr": 0.1, "decay": {"scope": "full", "strength": 0.5}}, sampling={"negatives": 1})
    trainer = Trainer(config, dataset, CPU)
    items = trainer.tables["items"]
    before, touched = items.stored_VD.clone(), set()
    for step in range(3):
        batch = trainer.source.batch(0, step)
        touched |= set(batch.items_U.tolist())
        trainer.step(batch)
    idle = [row for row in range(len(before)) if row not in touched]
    assert idle
    assert torch.allclose(items.read(torch.tensor(idle)), before[idle] * 0.95**3, rtol=1e-6)


FULL = {
    "closed form of decay": ("lazy_adam", "decoupled"),
    "closed form of momentum": ("momentum", "l2"),
    "replay of moments": ("adam", "decoupled"),
    "replay of accumulators": ("rowwise_adagrad", "l2"),
}


@pytest.mark.parametrize("case", FULL)
def test_every_read_applies_deferred_updates(small, dataset, tmp_path, case, monkeypatch):
    """Look-up, evaluation, checkpoint, reshard and resume: each read returns the rows of a dense sweep at each step."""
    rule, coupling = FULL[case]
    decay = {"scope": "full", "coupling": coupling, "strength": 0.02}
    config = changed(small, optim={"rule": rule, "lr": 0.05, "decay": decay}, sampling={"negatives": 8})
    trainer = Trainer(config, dataset, CPU)
    swept = {name: follow(trainer, name, config, monkeypatch) for name in trainer.tables}

    def check(read, name, rows_VD):
        error = (rows_VD.double() - swept[name].rows_VD).abs().max().item()
        assert error < 2e-5, (read, name, error)

    for step in range(15):
        trainer.step(trainer.source.batch(0, step))
        trainer.tables["items"].read(torch.tensor([step]))
    for name, table in trainer.tables.items():
        assert (table.stored_VD.double() - swept[name].rows_VD).abs().max() > 1e-3, "no update is pending"
        all_rows = torch.arange(len(table.stored_VD))
        check("read", name, table.read(all_rows))
        lookup = trainer.exchange.plan_lookup(all_rows.int().numpy(), [len(all_rows)]).result()
        check("look-up", name, trainer.exchange.fetch(lookup, table.read(lookup.rows_R)))
    trainer.step(trainer.source.batch(0, 15))
    seen = {"users": [], "items": []}
    monkeypatch.setattr(trainer.model, "users", lambda rows: seen["users"].append(rows) or rows)
    monkeypatch.setattr(trainer.model, "items", lambda rows: seen["items"].append(rows) or rows)
    evaluate(trainer)
    assert [len(seen[name]) for name in seen] == [1, 1]
    check("evaluation", "items", seen["items"][0])
    _, _, users = held_out_pairs(dataset, Part.TEST, trainer.tables["users"].partition, trainer.exchange.rank)
    assert (seen["users"][0].double() - swept["users"].rows_VD[users]).abs().max() < 2e-5
    monkeypatch.undo()
    trainer.tables["users"].read(torch.tensor([0]))
    swept = {name: follow(trainer, name, config, monkeypatch, swept[name]) for name in trainer.tables}
    trainer.step(trainer.source.batch(0, 16))
    trainer.save(tmp_path, {})
    check_reads_of_a_checkpoint(tmp_path, config, dataset, check)


def follow(trainer, name, config, monkeypatch, reference=None):
    """Return a dense reference that takes every step of an optimizer from now on."""
    table, optimizer = trainer.tables[name], trainer.optimizers[name]
    reference = reference or DenseReference(table.stored_VD.double(), config.optim, 10**6, name)
    step = optimizer.step
    reference.total_steps = optimizer._total_steps

    def both(local_U, grad_UD):
        reference.step(local_U, grad_UD.double())
        step(local_U, grad_UD)

    monkeypatch.setattr(optimizer, "step", both)
    return reference


def check_reads_of_a_checkpoint(folder, config, dataset, check):
    """Check what one worker, three workers, a resumed trainer and an evaluation read."""
    m = dataset.manifest
    for workers in (1, 3):
        partitions = {"users": Partition(m.users, m.buckets, workers), "items": Partition(m.items, m.buckets, workers)}
        shards = [load_shard(folder, worker, partitions)[0] for worker in range(workers)]
        for name, partition in partitions.items():
            full = torch.empty(partition.rows, config.model.dim)
            for worker in range(workers):
                full[torch.from_numpy(partition.rows_of(worker))] = shards[worker][name]["rows"]
            check(f"checkpoint for {workers}", name, full)
    resumed, evaluated = Trainer(config, dataset, CPU), ShardedModel(config, dataset, CPU)
    resumed.load(folder)
    evaluated.load_rows(folder)
    for read, tables in (("resumed", resumed.tables), ("evaluated", evaluated.tables)):
        for name, table in tables.items():
            check(read, name, table.read(torch.arange(len(table.stored_VD))))


def train_and_evaluate(config):
    """Train all epochs on this rank; return (test metrics, users, users left out, training interactions)."""
    dataset = prepare(config.data, log=lambda text: None)
    trainer = Trainer(config, dataset, CPU)
    for epoch in range(config.train.epochs):
        for batch in trainer.source.batches(epoch, 0, trainer.source.steps):
            trainer.step(batch)
    found = evaluate(trainer)
    return found.means(), found.users, found.left_out, dataset.manifest.train


@pytest.mark.parametrize("workers", [1, 3])
def test_the_smallest_data(small, tmp_path, workers):
    """Train on one interaction, test on one; with three workers two of them own no user."""
    (tmp_path / "train.txt").write_text("0 0\n")
    (tmp_path / "test.txt").write_text("0 1\n")
    data = {"source": str(tmp_path), "valid_fraction": 0}
    config = changed(small, data=data, eval={"untrained_items": "include"})
    for found in run_ranks(workers, train_and_evaluate, config):
        # The known item is masked, one item remains.
        assert found == ({"recall@20": 1.0, "ndcg@20": 1.0}, 1, 0, 1)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_user_with_every_item_and_users_without_training(small, tmp_path, workers):
    (tmp_path / "train.txt").write_text("0 0 1 2 3\n1 0 1\n3 3\n")
    (tmp_path / "test.txt").write_text("1 2\n2 1\n3 4 0\n")  # user 2 and item 4 are in the test part alone
    config = changed(small, data={"source": str(tmp_path), "valid_fraction": 0})
    for metrics, users, left_out, _ in run_ranks(workers, train_and_evaluate, config):
        # Item 4 is not ranked: of user 3's test items one is found, of user 1's all.
        assert (users, left_out, metrics["recall@20"]) == (2, 2, 0.75)
