"""Losses, models and a learner defined here, outside the package, train, are saved and go on like its own.

One part for each thing that a loss or a model may read. Each trains through the ordinary loop with 1, 2 and 3 workers,
with equal losses and metrics, and a checkpoint of two workers goes on with three and with one.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn

from distrec.data.prepare import prepare
from distrec.losses import Loss, losses
from distrec.models import EmbeddingConfig, Model, SolverConfig, models
from distrec.models.base import Scorer
from distrec.sharding.checkpoint import load_shard, save_shard
from distrec.sharding.collectives import Exchange
from distrec.sharding.initialization import initializers
from distrec.sharding.partition import Partition
from distrec.sharding.table import TableSpec
from distrec.testing.host import FolderHost
from distrec.testing.ranks import run_ranks
from distrec.training.loop import Job, Loop, make_learner
from distrec.training.trainer import Trainer
from tests.conftest import changed

CPU = torch.device("cpu")


@losses.register("seam_debiased")
class DebiasedSquares(Loss):
    """tau (1 - s_ui)^2 + mean_j s_uj^2 - tau mean_k s_uk^2, k extra positives, tau the user's share of the items."""

    extra_positives: int = 4
    """Extra positives M of each pair."""

    reads = ("positive_B", "negative_BN", "extra_BM", "degree_B")

    def per_pair(self, step):
        tau_B = step.degree_B / step.items
        corrected_B = step.negative_BN.square().mean(1) - tau_B * step.extra_BM.square().mean(1)
        return tau_B * (1 - step.positive_B).square() + corrected_B


@losses.register("seam_margins")
class Margins(Loss):
    """Angular alignment with a margin of the user and one of the item, and uniformity of the batch's users."""

    reads = ("users_BD", "positives_BD", "batch")
    similarity = "cosine"

    def tables(self):
        init = initializers["xavier_normal"]()
        return TableSpec("user_margin", "users", 1, init), TableSpec("item_margin", "items", 1, init, decay=0.01)

    def share(self, step):
        margin_B = 1 - torch.sigmoid(step.tables["user_margin"] + step.tables["item_margin"])[:, 0]
        cosine_B = (step.users_BD * step.positives_BD).sum(1).clamp(-1 + 1e-6, 1 - 1e-6)
        align = -torch.cos(torch.acos(cosine_B) + margin_B).sum() / step.pairs
        users_UD, counts_U = step.batch.unique_users()
        items_BD, own = step.batch.items_BD, step.batch.own
        near = torch.exp(2 * items_BD[own] @ items_BD.T - 2).sum()  # own rows of the sum: shares of one logarithm
        uniform = torch.log(step.exchange.all_sum(near)) + torch.log(torch.exp(4 * users_UD @ users_UD.T - 4).mean())
        return align + (uniform + 0 * counts_U.sum()) / step.workers


@losses.register("seam_distance")
class Distances(Loss):
    """mean_j [d_ui^2 - d_uj^2 + 1]+ with squared Euclidean distances from scores and norms."""

    reads = ("positive_B", "negative_BN", "user_norm2_B", "positive_norm2_B", "negative_norm2_BN")

    def per_pair(self, step):
        positive_B = step.user_norm2_B + step.positive_norm2_B - 2 * step.positive_B
        negative_BN = step.user_norm2_B[:, None] + step.negative_norm2_BN - 2 * step.negative_BN
        return (positive_B[:, None] - negative_BN + 1).clamp(min=0).mean(1)


@models.register("seam_network")
class NetworkConfig(EmbeddingConfig):
    """A layer of its own for users and for items."""

    hidden: int = 8
    """Width of the hidden layer."""

    def build(self):
        return Network(self)


class Network(Model):
    def __init__(self, config):
        super().__init__()
        layers = [nn.Linear(config.dim, config.hidden), nn.Tanh(), nn.Linear(config.hidden, config.dim)]
        self.of_users, self.of_items = nn.Sequential(*layers), nn.Linear(config.dim, config.dim)

    def users(self, rows_UD):
        return self.of_users(rows_UD)

    def items(self, rows_RD):
        return self.of_items(rows_RD)


@models.register("seam_graph")
class PropagationConfig(EmbeddingConfig):
    """Mean of the rows and two propagations over the graph (LightGCN)."""

    reads = ("graph",)

    def build(self):
        return Propagation()


class Propagation(Model):
    def encode(self, inputs):
        layers = [(inputs.users["users"], inputs.items["items"])]
        for _ in range(2):
            users_VD, items_VD = layers[-1]
            layers.append((inputs.graph.to_users(items_VD), inputs.graph.to_items(users_VD)))
        return tuple(torch.stack(side).mean(0) for side in zip(*layers, strict=True))


@models.register("seam_history")
class HistoryConfig(EmbeddingConfig):
    """The user's row plus the mean of the rows of its history."""

    history: int = 5
    """Items H of a history."""

    reads = ("history",)

    def build(self):
        return HistoryModel()


class HistoryModel(Model):
    def encode(self, inputs):
        items_RD = inputs.items["items"]
        history_UHD, present_UH = inputs.history.items(items_RD)
        mean_UD = history_UHD.sum(1) / present_UH.sum(1, keepdim=True).clamp(min=1)
        squares_UD = inputs.history.fetch(items_RD.square())  # one more fetch before the backward pass
        users_UD = inputs.users["users"] + mean_UD
        if not dist.is_initialized() or dist.get_rank() == 0:  # that the other ranks do not use
            users_UD = users_UD + 0 * squares_UD.sum()
        return users_UD, items_RD


@models.register("seam_counts")
class CountsConfig(SolverConfig):
    """Popularity, one pass over the interactions an epoch."""

    def learner(self, dataset, seed, device):
        return Counts(dataset, Exchange(device))


class Counts(Scorer):
    source, scorer = None, property(lambda self: self)

    def __init__(self, dataset, exchange):
        self.exchange, m = exchange, dataset.manifest
        self.items, rank = Partition(m.items, m.buckets, exchange.workers), exchange.rank
        own = Partition(m.users, m.buckets, exchange.workers).owned_buckets(rank)
        self.own_items, self.counts_V = dataset.interactions(0, own)[1], torch.zeros(m.items)

    def describe(self):
        return "counts interactions"

    def observe(self, watched):
        pass

    def timing(self):
        return {}

    def diagnostics(self):
        return {}

    def train_epoch(self, epoch, first_step, batches, emit):
        self.counts_V += self.exchange.all_add(torch.from_numpy(np.bincount(self.own_items, minlength=self.items.rows)))
        return float(len(self.own_items)) / (epoch + 1)

    def scores(self, users, items, out_UV):
        out_UV.copy_(self.counts_V[torch.from_numpy(items)].expand_as(out_UV))

    def save(self, folder, meta):
        rank = self.exchange.rank
        rows = {"items": {"rows": self.counts_V[torch.from_numpy(self.items.rows_of(rank))]}}
        save_shard(folder, rank, {"items": self.items}, rows, meta, {})

    def load(self, folder):
        whole, meta, _ = load_shard(folder, 0, {"items": Partition(self.items.rows, self.items.buckets, 1)})
        self.counts_V = whole["items"]["rows"].clone()
        return meta


PARTS = {
    "debiased": {"loss": {"name": "seam_debiased"}, "sampling": {"reject": False, "shared": False}},
    "margins": {"loss": {"name": "seam_margins"}, "optim": {"decay": {"scope": "full", "tables": {"users": 0.1}}}},
    "distance": {
        "loss": {"name": "seam_distance"},
        "model": {"similarity": "dot", "init": {"std": 0.1}},
        "sampling": {"reject": False},
        "eval": {"similarity": "cosine"},
    },
    "network": {"model": {"name": "seam_network", "hidden": 4}, "optim": {"rule": "adam"}},
    "graph": {"model": {"name": "seam_graph", "similarity": "dot"}, "optim": {"idle": "sweep"}},
    "history": {"model": {"name": "seam_history"}},
    "counts": {"model": {"name": "seam_counts"}},
}
EPOCHS = 2


def run_parts(configs, dataset, folder, restore=None):
    """Run each part through the loop; return its losses, test metrics, and events by kind."""
    results = {}
    for name, config in configs.items():
        learner = make_learner(config, dataset, CPU)
        if isinstance(learner, Trainer):
            compare_parameters_at_each_step(learner)
        host = FolderHost(Path(folder, name), restore and Path(restore, name, "1"))
        outcome = Loop(Job(config, dataset, "thread"), learner, host).run()
        losses = [record["loss"] for record in outcome["history"]]
        results[name] = losses, outcome["test"].means(), [e["kind"] for e in host.events if e["kind"] != "step"]
    return results


def compare_parameters_at_each_step(trainer):
    """Assert after every step that the dense parameters are the same bits at all workers."""
    step, parameters = trainer.dense.step, list(trainer.model.parameters())

    def checked(gradient):
        before = [parameter.detach().clone() for parameter in parameters]
        step(gradient)
        for parameter, old in zip(parameters, before, strict=True):
            everywhere, _ = trainer.exchange.gather(parameter.detach().view(1, -1))
            assert (everywhere == everywhere[0]).all() and not torch.equal(parameter, old)

    trainer.dense.step = checked


@pytest.fixture(scope="module")
def parts_by_workers(small, dataset, tmp_path_factory):
    """(folder of the checkpoints, results of rank 0 by number of workers)."""
    base, results = tmp_path_factory.mktemp("seams"), {}
    base_config = changed(small, train={"epochs": EPOCHS, "batch_size": 512})
    configs = {name: changed(base_config, **part) for name, part in PARTS.items()}
    for workers in (1, 2, 3):
        for name in configs:
            (base / str(workers) / name).mkdir(parents=True)
        found = run_ranks(workers, run_parts, configs, dataset, base / str(workers), timeout_s=200)
        assert all(rank[name][:2] == found[0][name][:2] for rank in found for name in configs)
        results[workers] = found[0]
    return configs, base, results


@pytest.mark.parametrize("name", PARTS)
def test_workers_change_nothing(parts_by_workers, name):
    _, _, results = parts_by_workers
    losses, metrics, events = results[1][name]
    assert events.count("epoch") == EPOCHS and losses[1] < losses[0]
    for workers in (2, 3):
        assert np.allclose(results[workers][name][0], losses, rtol=1e-5)
        assert results[workers][name][1] == pytest.approx(metrics, abs=0.003)


def test_the_smallest_data(small, tmp_path):
    """One interaction, and two of three workers without a user: their graphs leave out what they have no rows for."""
    (tmp_path / "train.txt").write_text("0 0\n")
    (tmp_path / "test.txt").write_text("0 1\n")
    base = changed(small, data={"source": str(tmp_path), "valid_fraction": 0}, train={"epochs": 2})
    configs = {name: changed(base, **part) for name, part in PARTS.items()}
    dataset, found = prepare(base.data, log=lambda text: None), []
    for workers in (1, 3):
        for name in configs:
            (tmp_path / str(workers) / name).mkdir(parents=True)
        found.append(run_ranks(workers, run_parts, configs, dataset, tmp_path / str(workers), timeout_s=60)[0])
    for name in configs:
        assert np.allclose(found[0][name][0], found[1][name][0], rtol=1e-4, atol=1e-5), name
        assert found[0][name][1] == found[1][name][1], name


@pytest.mark.timeout(300)
@pytest.mark.parametrize("workers", [1, 3])
def test_a_checkpoint_of_two_workers_goes_on(parts_by_workers, dataset, tmp_path, workers):
    configs, base, results = parts_by_workers
    for name in configs:
        (tmp_path / name).mkdir()
    found = run_ranks(workers, run_parts, configs, dataset, tmp_path, base / "2", timeout_s=200)[0]
    for name in configs:
        assert np.allclose(found[name][0], results[2][name][0], rtol=1e-5), name
        assert found[name][1] == pytest.approx(results[2][name][1], abs=0.003), name
