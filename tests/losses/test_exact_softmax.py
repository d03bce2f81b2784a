"""Exact softmax against autograd over the dense score matrix, on one worker and on several."""

import pytest
import torch

from distrec.losses import LossInputs, exact_softmax, losses
from distrec.losses.base import Catalogue
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


def catalogue(scale: float = 1.0, needs_gradient: bool = False):
    """Return what one worker of the group has: (its pairs, its items, the catalogue with its pairs' users).

    One bucket more than workers: uneven shards. Worker 0 has half of the pairs, the others an equal share of the rest.
    """
    exchange = Exchange(torch.device("cpu"))
    partition = Partition(V, exchange.workers + 1, exchange.workers)
    users_BD, items_VD, positive_B = data(scale)
    bounds = [0, *torch.linspace(B // 2, B, exchange.workers).int().tolist()] if exchange.workers > 1 else [0, B]
    pairs = slice(*bounds[exchange.rank : exchange.rank + 2])
    items = torch.from_numpy(partition.rows_of(exchange.rank))
    owned_B = torch.where(partition.owner(positive_B) == exchange.rank, partition.local(positive_B), -1)
    rows = (rows.clone().requires_grad_(needs_gradient) for rows in (users_BD[pairs], items_VD[items]))
    return pairs, items, Catalogue(*rows, owned_B, exchange)


def sharded(temperature: float, scale: float, block_pairs: int):
    """Return the items of one worker of the group, and losses and gradients for all pairs."""
    _, items, given = catalogue(scale)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exact_softmax, "_SCORES", block_pairs * V)
        return items, exact_softmax.softmax(given._replace(users_BD=data(scale)[0]), temperature)


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_softmax_is_cross_entropy_over_all_items(workers):
    for temperature, scale, block_pairs in ((1.0, 1.0, B), (0.1, 1.0, 5), (0.5, 300.0, 1)):
        expected = dense(*data(scale), temperature)
        results = run_ranks(workers, sharded, temperature, scale, block_pairs)
        items_grad_VD = torch.zeros(V, D, dtype=torch.float64)
        for items, (loss_B, users_grad_BD, own_grad_VD) in results:
            torch.testing.assert_close(loss_B, expected[0], rtol=1e-12, atol=1e-10)
            torch.testing.assert_close(users_grad_BD, expected[1], rtol=1e-11, atol=1e-11)
            items_grad_VD[items] = own_grad_VD
        torch.testing.assert_close(items_grad_VD, expected[2], rtol=1e-11, atol=1e-11)


def backward(temperature: float):
    """Return the share of one worker, its pairs and items, and the gradients of three times the loss."""
    pairs, items, given = catalogue(needs_gradient=True)
    share = losses["softmax"](temperature=temperature).share(LossInputs(pairs=B, catalogue=given))
    (3 * share).backward()
    return share.item(), pairs, items, given.users_BD.grad, given.items_VD.grad


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_shares_sum_to_the_mean_and_have_its_gradients(workers):
    loss_B, users_grad_BD, items_grad_VD = dense(*data(), 0.3)
    results = run_ranks(workers, backward, 0.3)
    assert sum(share for share, *_ in results) == pytest.approx(loss_B.mean().item(), rel=1e-12)
    for _, pairs, items, own_users_grad_BD, own_items_grad_VD in results:
        torch.testing.assert_close(own_users_grad_BD, 3 / B * users_grad_BD[pairs], rtol=1e-11, atol=1e-11)
        torch.testing.assert_close(own_items_grad_VD, 3 / B * items_grad_VD[items], rtol=1e-11, atol=1e-11)


def test_one_item_and_no_pairs():
    exchange = Exchange(torch.device("cpu"))
    one = Catalogue(torch.randn(2, D), torch.randn(1, D), torch.tensor([0, 0]), exchange)
    loss_B, users_grad_BD, _ = exact_softmax.softmax(one, 0.1)
    assert loss_B.tolist() == [0, 0] and users_grad_BD.abs().max() < 1e-6
    none = Catalogue(torch.zeros(0, D), torch.randn(3, D), torch.zeros(0, dtype=torch.int64), exchange)
    loss_B, _, items_grad_VD = exact_softmax.softmax(none, 0.1)
    assert len(loss_B) == 0 and not items_grad_VD.any()
