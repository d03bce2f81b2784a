"""Losses over the whole catalogue, of which each worker scores the items it owns. They see representations, not scores.

The (B, V) scores are made for some pairs at a time, so that they take bounded memory; a pair's scores are then
complete, and each is computed once. With W workers, two numbers a pair are combined over the workers: the largest score
and the sum of the exponentials.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch

from distrec.core.registry import Registry
from distrec.losses.config import LossConfig
from distrec.sharding.collectives import Exchange

_SCORES = 2**25  # held at a time: 128 MiB. Fewer pairs a block make the matrix products slow.


class Outcome(NamedTuple):
    """The pairs of all workers, in the order of the ranks, and this worker's items."""

    loss_B: torch.Tensor
    users_grad_BD: torch.Tensor
    """Of the sum of `loss_B`, over all items."""
    items_grad_VD: torch.Tensor
    """Of the sum of `loss_B`, over all pairs."""


CatalogueLoss = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, LossConfig, Exchange], Outcome]
"""(representations of the users of all pairs (B, D), of this worker's items (V, D), the number of each pair's positive
among these items or -1 where another worker owns it (B,), configuration, group) -> loss and gradients. All workers give
the same users and call it together."""

catalogue_losses: Registry[CatalogueLoss] = Registry("loss over the whole catalogue")


@catalogue_losses.register("softmax")
@torch.no_grad()
def softmax(
    users_BD: torch.Tensor, items_VD: torch.Tensor, positive_B: torch.Tensor, config: LossConfig, exchange: Exchange
) -> Outcome:
    """-s_ui/t + log sum over all items j of e^{s_uj/t}, exact (SimCE paper, Eq. 3; MINE paper, Eq. 1)."""
    loss_B, users_grad_BD = users_BD.new_empty(len(users_BD)), torch.empty_like(users_BD)
    items_grad_VD = torch.zeros_like(items_VD)
    largest = len(items_VD)
    if exchange.workers > 1:  # every worker must cut the pairs alike; a GPU is not waited for without need
        largest = int(exchange.all_max(torch.tensor([largest], device=items_VD.device)))
    pairs = max(1, _SCORES // max(1, largest))
    for start in range(0, len(users_BD), pairs):
        block = slice(start, start + pairs)
        mine = positive_B[block] >= 0
        at = torch.where(mine, positive_B[block], 0)
        users_bD = users_BD[block] / config.temperature
        scores_bV = users_bD @ items_VD.T
        positive_b = _picked(scores_bV, at, mine)
        highest_b = scores_bV.amax(1) if len(items_VD) else scores_bV.new_full((len(at),), -torch.inf)
        highest_b = exchange.all_max(highest_b)
        share_bV = scores_bV.sub_(highest_b[:, None]).exp_()  # of e^s in what the pair's items sum to, once divided
        sums_b, positive_b = exchange.all_add(torch.stack([share_bV.sum(1), positive_b]))
        loss_B[block] = sums_b.log() + highest_b - positive_b
        # The gradient of the scores is share / sum, minus 1 at the positive. Divided where it costs D and not V a pair.
        users_grad_BD[block] = (share_bV @ items_VD / sums_b[:, None] - _picked_rows(items_VD, at, mine)) / (
            config.temperature
        )
        items_grad_VD.addmm_(share_bV.T, users_bD / sums_b[:, None])
        if len(items_VD):
            items_grad_VD.index_add_(0, at, users_bD.masked_fill(~mine[:, None], 0.0), alpha=-1)
    return Outcome(loss_B, exchange.all_add(users_grad_BD), items_grad_VD)


def _picked(scores_bV: torch.Tensor, at: torch.Tensor, mine: torch.Tensor) -> torch.Tensor:
    """The scores of the positives, 0 where they are another worker's."""
    if scores_bV.shape[1] == 0:
        return scores_bV.new_zeros(len(at))
    return scores_bV.gather(1, at[:, None]).squeeze(1).masked_fill_(~mine, 0.0)


def _picked_rows(items_VD: torch.Tensor, at: torch.Tensor, mine: torch.Tensor) -> torch.Tensor:
    """The positives, 0 where they are another worker's."""
    if len(items_VD) == 0:
        return items_VD.new_zeros(len(at), items_VD.shape[1])
    return items_VD.index_select(0, at).masked_fill_(~mine[:, None], 0.0)
