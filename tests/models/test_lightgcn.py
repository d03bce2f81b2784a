"""LightGCN beside PyTorch Geometric: forward, backward, and 20 steps of dense Adam with any number of workers."""

import numpy as np
import pytest
import torch
from torch_geometric.nn import LGConv

from distrec.testing.ranks import run_ranks
from distrec.training.trainer import Trainer
from tests.conftest import changed
from tests.models.test_models import joined

CPU, STEPS, LR = torch.device("cpu"), 20, 0.01


def config_of(small, **optim):
    return changed(
        small,
        model={"name": "lightgcn", "layers": 3, "similarity": "dot", "init": {"std": 0.1}},
        loss={"name": "bpr"},
        sampling={"shared": False, "negatives": 2},
        optim={"lr": LR} | optim,
    )


class Geometric:
    """LightGCN of LGConv layers over a (2, edges) index, with the initial rows of a trainer of one worker."""

    def __init__(self, trainer):
        indptr, items = trainer.source.interactions_csr
        users = np.repeat(np.arange(len(indptr) - 1), np.diff(indptr))
        edges = torch.from_numpy(np.stack([users, items + len(indptr) - 1]))
        self.edges, self.conv = torch.cat([edges, edges.flip(0)], 1), LGConv()
        self.users = len(indptr) - 1
        rows = [trainer.tables[name].flush() for name in ("users", "items")]
        self.rows = torch.nn.Parameter(torch.cat(rows).clone())

    def representations(self):
        layers = [self.rows]
        for _ in range(3):
            layers.append(self.conv(layers[-1], self.edges))
        return torch.stack(layers).mean(0).split([self.users, len(self.rows) - self.users])

    def loss(self, batch):
        users, items = self.representations()
        users = users[torch.from_numpy(batch.users_U).long()][torch.from_numpy(batch.user_index_B).long()]
        items = items[torch.from_numpy(batch.items_U).long()]
        positive_B = (users * items[torch.from_numpy(batch.positive_index_B).long()]).sum(1)
        negative_BN = torch.einsum(
            "bd,bnd->bn", users, items[torch.from_numpy(batch.negative_index).long().view(-1, 2)]
        )
        return torch.nn.functional.softplus(negative_BN - positive_B[:, None]).mean()


def test_forward_and_backward(small, dataset):
    trainer = Trainer(config_of(small, rule="sgd", lr=1.0), dataset, CPU)
    geometric, batch = Geometric(trainer), trainer.source.batch(0, 0)
    before = geometric.rows.detach().clone()
    some = np.array([2, 5, 250])
    expected = geometric.representations()
    found = trainer.scorer.representations(some)
    torch.testing.assert_close(found[0], expected[0][some].detach(), rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(found[1], expected[1].detach(), rtol=1e-5, atol=1e-7)
    loss = geometric.loss(batch)
    loss.backward()
    assert trainer.step(batch).item() == pytest.approx(loss.item(), rel=1e-6)
    change = before - torch.cat([trainer.tables[name].flush() for name in ("users", "items")])
    # The change of a row of 0.1 is rounded to 1e-8.
    torch.testing.assert_close(change, geometric.rows.grad, rtol=1e-4, atol=3e-8)
    assert "sweep" in trainer.describe()


def adam_steps(config, dataset):
    """Return (losses, [(ids, rows of the users), (ids, rows of the items)]) of this worker after some steps."""
    trainer, losses = Trainer(config, dataset, CPU), []
    for k in range(STEPS):
        batch = trainer.source.batch(*divmod(k, trainer.source.steps))
        losses.append(trainer.exchange.all_sum([trainer.step(batch).item()])[0])
    tables = [trainer.tables[name] for name in ("users", "items")]
    rows = [(table.partition.rows_of(trainer.exchange.rank), table.flush().numpy().copy()) for table in tables]
    return {"lightgcn": (losses, rows)}


@pytest.mark.long
def test_twenty_steps_of_dense_adam(small, dataset):
    """Full l2 decay, as torch.optim.Adam has it. Adam divides by the gradient's size, and so shows the rounding of an
    element whose gradient is small: the tolerance is a share of the 20 steps of LR that an element can move."""
    config = config_of(small, rule="adam", decay={"scope": "full", "coupling": "l2", "strength": 1e-3})
    trainer = Trainer(config, dataset, CPU)
    geometric, losses = Geometric(trainer), []
    start = geometric.rows.detach().clone()
    optimizer = torch.optim.Adam([geometric.rows], LR, weight_decay=1e-3)
    for k in range(STEPS):
        optimizer.zero_grad()
        loss = geometric.loss(trainer.source.batch(*divmod(k, trainer.source.steps)))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert (geometric.rows.detach() - start).abs().quantile(0.1) > LR
    expected = geometric.rows.detach().split([geometric.users, len(geometric.rows) - geometric.users])
    for workers in (1, 2, 3):
        found, *rows = joined(run_ranks(workers, adam_steps, config, dataset))["lightgcn"]
        assert found == pytest.approx(losses, rel=1e-5), workers
        for side, wanted in zip(rows, expected, strict=True):
            error = np.abs(side - wanted.numpy()).max()
            assert error < 1e-4 * STEPS * LR, workers
