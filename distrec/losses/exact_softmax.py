"""Losses over the whole catalogue, from representations. Each worker scores the items that it owns.

The (B, V) scores are computed for blocks of pairs (suffix b), which bounds their memory; within a block each score is
computed once. With W workers, two values per pair are reduced over the workers: the maximum score and the sum of the
exponentials.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from distrec.core.registry import Registry
from distrec.losses.config import LossConfig
from distrec.sharding.collectives import Exchange

_SCORES = 2**25  # held at a time: 128 MiB in float32. Smaller blocks make the matrix products slow.


class Outcome(NamedTuple):
    """Losses and user gradients of the pairs of all workers, in rank order, and gradients of this worker's items."""

    loss_B: Tensor
    users_grad_BD: Tensor
    """Gradient of `loss_B.sum()`, summed over all items."""
    items_grad_VD: Tensor
    """Gradient of `loss_B.sum()`, summed over all pairs."""


CatalogueLoss = Callable[[Tensor, Tensor, Tensor, LossConfig, Exchange], Outcome]
"""(users of all pairs (B, D), this worker's items (V, D), index of each pair's positive among these items or -1 where
another worker owns it (B,), configuration, group) -> losses and gradients. Users and items are representations.
Collective: all workers call it with the same users."""

catalogue_losses: Registry[CatalogueLoss] = Registry("catalogue loss")


@catalogue_losses.register("softmax")
@torch.no_grad()
def softmax(users_BD: Tensor, items_VD: Tensor, positive_B: Tensor, config: LossConfig, exchange: Exchange) -> Outcome:
    """Return -s_ui/t + log sum over all items j of e^{s_uj/t}, exact (SimCE paper, Eq. 3; MINE paper, Eq. 1)."""
    loss_B, users_grad_BD = users_BD.new_empty(len(users_BD)), torch.empty_like(users_BD)
    items_grad_VD = torch.zeros_like(items_VD)
    largest = len(items_VD)
    if exchange.workers > 1:  # all workers need the same blocks; one worker does not need to synchronise with its GPU
        largest = int(exchange.all_max(torch.tensor([largest], device=items_VD.device)))
    pairs = max(1, _SCORES // max(1, largest))
    for start in range(0, len(users_BD), pairs):
        block = slice(start, start + pairs)
        owned_b = positive_B[block] >= 0
        index_b = torch.where(owned_b, positive_B[block], 0)
        users_bD = users_BD[block] / config.temperature
        scores_bV = users_bD @ items_VD.T
        positive_b = _positive_scores(scores_bV, index_b, owned_b)
        highest_b = scores_bV.amax(1) if len(items_VD) else scores_bV.new_full((len(index_b),), -torch.inf)
        highest_b = exchange.all_max(highest_b)
        numerator_bV = scores_bV.sub_(highest_b[:, None]).exp_()  # of the softmax
        sums_b, positive_b = exchange.all_add(torch.stack([numerator_bV.sum(1), positive_b]))
        loss_B[block] = sums_b.log() + highest_b - positive_b
        # Gradient of the scores: numerator / sum, minus 1 at the positive. Dividing after the product with the items
        # costs D operations per pair, not V.
        positives_bD = _positive_rows(items_VD, index_b, owned_b)
        users_grad_BD[block] = (numerator_bV @ items_VD / sums_b[:, None] - positives_bD) / config.temperature
        items_grad_VD.addmm_(numerator_bV.T, users_bD / sums_b[:, None])
        if len(items_VD):
            items_grad_VD.index_add_(0, index_b, users_bD.masked_fill(~owned_b[:, None], 0.0), alpha=-1)
    return Outcome(loss_B, exchange.all_add(users_grad_BD), items_grad_VD)


def _positive_scores(scores_bV: Tensor, index_b: Tensor, owned_b: Tensor) -> Tensor:
    """Return the scores of the positives, 0 where another worker owns them."""
    if scores_bV.shape[1] == 0:
        return scores_bV.new_zeros(len(index_b))
    return scores_bV.gather(1, index_b[:, None]).squeeze(1).masked_fill_(~owned_b, 0.0)


def _positive_rows(items_VD: Tensor, index_b: Tensor, owned_b: Tensor) -> Tensor:
    """Return the rows of the positives, 0 where another worker owns them."""
    if len(items_VD) == 0:
        return items_VD.new_zeros(len(index_b), items_VD.shape[1])
    return items_VD.index_select(0, index_b).masked_fill_(~owned_b[:, None], 0.0)
