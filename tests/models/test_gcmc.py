"""GC-MC: its convolution beside messages edge by edge, and the loss under which its representations collapse."""

import numpy as np
import pytest
import torch
from torch.nn.functional import softplus

from distrec.losses import Loss, losses
from distrec.models.message_passing import Convolution
from distrec.testing.host import FolderHost
from distrec.training.loop import Job, Loop
from distrec.training.trainer import Trainer
from tests.conftest import changed
from tests.kernels.test_sparse_matrix import random_matrix
from tests.training.test_trainer import evaluate

CPU = torch.device("cpu")


def test_the_sparse_product_passes_the_messages_of_every_edge():
    matrix, dense = random_matrix(12, 9)
    convolution, rows_XD, weights = Convolution(6), torch.randn(9, 6), torch.randn(12, 6)
    edges = torch.from_numpy(np.stack(np.nonzero(dense.numpy().T)))  # (2, edges): from, to
    found = []
    for edge_by_edge in (True, False):
        messages_XD = convolution.linear(rows_XD)
        if edge_by_edge:
            weight_E = dense[edges[1], edges[0]]
            more = {"edge_weight": weight_E, "matrix": None, "transposed": None, "size": (9, 12)}
            sums_VD = convolution.propagate(edges, x=(messages_XD, None), **more)
        else:
            sums_VD = convolution(messages_XD, matrix, matrix.transposed())
        convolution.zero_grad()
        (sums_VD * weights).sum().backward()
        found.append([sums_VD.detach(), *(parameter.grad.clone() for parameter in convolution.parameters())])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


@losses.register("one_sigmoid")
class OneSigmoid(Loss):
    """-log sigmoid(sum over the batch of s_ui - s_uj): BPR with the sum inside. One factor is shared by all pairs."""

    reads = ("positive_B", "negative_BN")

    def share(self, step):
        total = step.exchange.all_sum((step.positive_B[:, None] - step.negative_BN).sum())
        return softplus(-total) / step.workers


def config_of(small, name, seed):
    """Return a configuration in which GC-MC collapses if its loss lets it."""
    return changed(
        small,
        run={"seed": seed},
        model={"name": "gcmc", "similarity": "dot", "init": {"std": 0.1}},
        loss={"name": name},
        sampling={"shared": False, "negatives": 1},
        optim={"rule": "sgd", "lr": 0.02},
        train={"batch_size": 1024, "epochs": 12},
    )


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_representations_collapse_where_the_sum_is_inside_the_sigmoid(small, dataset, seed):
    """All pairs push along one direction, whatever their own scores, and rows grow without a bound."""
    ranks, largest = {}, {}
    for name in ("one_sigmoid", "bpr"):
        trainer = Trainer(config_of(small, name, seed), dataset, CPU)
        for k in range(60):
            trainer.step(trainer.source.batch(*divmod(k, trainer.source.steps)))
        figures = evaluate(trainer).diagnostics
        ranks[name] = min(figures[f"effective_rank_{side}"] for side in ("users", "items"))
        sides = trainer.scorer.representations(np.arange(dataset.manifest.users))
        largest[name] = max(rows.abs().max() for rows in sides)
    assert ranks["one_sigmoid"] < 3.5 < 5 < ranks["bpr"]
    assert largest["one_sigmoid"] > 5 * largest["bpr"]


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.long
def test_a_collapse_is_noticed_in_training(small, dataset, tmp_path, seed):
    for name in ("one_sigmoid", "bpr"):
        config = config_of(small, name, seed)
        host = FolderHost(tmp_path)
        Loop(Job(config, dataset, "thread"), Trainer(config, dataset, CPU), host).run()
        warnings = [e["text"] for e in host.events if e["kind"] == "note" and e["text"].startswith("warning")]
        assert len(warnings) == (name == "one_sigmoid"), warnings
        if warnings:
            assert "collapse to one direction" in warnings[0]
            assert "lower optim.lr" in warnings[0] or "saturated loss" in warnings[0]
