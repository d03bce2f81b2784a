"""Exact softmax against autograd over the dense score matrix, on one worker and on several."""

import pytest
import torch

from distrec.losses import exact_softmax
from distrec.losses.config import LossConfig
from distrec.sharding.collectives import Exchange
from distrec.sharding.partition import Partition
from distrec.testing.ranks import run_ranks

B, V, D = 37, 50, 6


def data(scale: float = 1.0):
    """Return users of all pairs, all items, and positives; some items are positives twice, some never."""
    generator = torch.Generator().manual_seed(0)
    users_BD = scale * torch.randn(B, D, generator=generator, dtype=torch.float64)
    items_VD = torch.randn(V, D, generator=generator, dtype=torch.float64)
    return users_BD, items_VD, torch.randint(V // 2, (B,), generator=generator)


def dense(users_BD, items_VD, positive_B, temperature):
    """Return cross-entropy over the dense score matrix, and its gradients."""
    users_BD, items_VD = users_BD.clone().requires_grad_(), items_VD.clone().requires_grad_()
    loss_B = torch.nn.functional.cross_entropy(users_BD @ items_VD.T / temperature, positive_B, reduction="none")
    loss_B.sum().backward()
    return loss_B.detach(), users_BD.grad, items_VD.grad


def sharded(temperature: float, scale: float, block_pairs: int):
    """Return the items of one worker of the group and its outcome. One bucket more than workers: uneven shards."""
    exchange = Exchange(torch.device("cpu"))
    partition = Partition(V, exchange.workers + 1, exchange.workers)
    users_BD, items_VD, positive_B = data(scale)
    own = torch.from_numpy(partition.rows_of(exchange.rank))
    owned_B = torch.where(partition.owner(positive_B) == exchange.rank, partition.local(positive_B), -1)
    config = LossConfig(name="softmax", temperature=temperature)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exact_softmax, "_SCORES", block_pairs * V)
        return own, exact_softmax.softmax(users_BD, items_VD[own], owned_B, config, exchange)


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_softmax_is_cross_entropy_over_all_items(workers):
    for temperature, scale, block_pairs in ((1.0, 1.0, B), (0.1, 1.0, 5), (0.5, 300.0, 1)):
        expected = dense(*data(scale), temperature)
        results = run_ranks(workers, sharded, temperature, scale, block_pairs)
        items_grad_VD = torch.zeros(V, D, dtype=torch.float64)
        for own, outcome in results:
            torch.testing.assert_close(outcome.loss_B, expected[0], rtol=1e-12, atol=1e-10)
            torch.testing.assert_close(outcome.users_grad_BD, expected[1], rtol=1e-11, atol=1e-11)
            items_grad_VD[own] = outcome.items_grad_VD
        torch.testing.assert_close(items_grad_VD, expected[2], rtol=1e-11, atol=1e-11)


def test_one_item_and_no_pairs():
    exchange, config = Exchange(torch.device("cpu")), LossConfig(name="softmax")
    one = exact_softmax.softmax(torch.randn(2, D), torch.randn(1, D), torch.tensor([0, 0]), config, exchange)
    assert one.loss_B.tolist() == [0, 0] and one.users_grad_BD.abs().max() < 1e-6
    none = exact_softmax.softmax(
        torch.zeros(0, D), torch.randn(3, D), torch.zeros(0, dtype=torch.int64), config, exchange
    )
    assert len(none.loss_B) == 0 and not none.items_grad_VD.any()
