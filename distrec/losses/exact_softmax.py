"""Losses over the whole catalogue, from representations. Each worker scores the items that it owns.

The (B, V) scores are computed for blocks of pairs (suffix b), which bounds their memory; within a block each score is
computed once. With W workers, two values per pair are reduced over the workers: the maximum score and the sum of the
exponentials.
"""

from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from distrec.losses.base import Catalogue, Loss, LossInputs, losses

_SCORES = 2**25  # held at a time: 128 MiB in float32. Smaller blocks make the matrix products slow.


@losses.register("softmax")
class Softmax(Loss):
    """-s_ui/t + log sum over all items j of e^{s_uj/t}, exact (SimCE paper, Eq. 3; MINE paper, Eq. 1).

    It draws no negatives, and every item row has a gradient at each step.
    """

    temperature: float = Field(0.1, gt=0)
    """Temperature t; scores are divided by it."""

    reads = ("catalogue",)

    def share(self, step: LossInputs) -> Tensor:
        loss_sum: Tensor = _SoftmaxSum.apply(  # type: ignore[no-untyped-call]
            step.catalogue.users_BD, step.catalogue.items_VD, step.catalogue, self.temperature, step.pairs
        )
        return loss_sum


class _SoftmaxSum(torch.autograd.Function):
    """The share of this worker's pairs in the mean. Gradients are computed with the losses, block by block, under the
    assumption that all workers then multiply by the same factor; the backward pass exchanges nothing."""

    @staticmethod
    def forward(
        ctx: Any, users_BD: Tensor, items_VD: Tensor, catalogue: Catalogue, temperature: float, pairs: int
    ) -> Tensor:
        all_users_BD, own = catalogue.exchange.gather(users_BD)
        loss_B, users_grad_BD, items_grad_VD = softmax(
            catalogue._replace(users_BD=all_users_BD, items_VD=items_VD), temperature
        )
        ctx.grads = users_grad_BD[own].div_(pairs), items_grad_VD.div_(pairs)
        return loss_B[own].sum() / pairs

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (users_grad_BD, items_grad_VD), ctx.grads = ctx.grads, None
        return users_grad_BD.mul_(grad), items_grad_VD.mul_(grad), None, None, None


@torch.no_grad()
def softmax(catalogue: Catalogue, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return losses of all pairs (B,), and the gradients of their sum: of all users (B, D) and of own items (V, D).

    Collective: all workers call it with the users of the pairs of all workers, in rank order.
    """
    users_BD, items_VD, positive_B, exchange = catalogue
    loss_B, users_grad_BD = users_BD.new_empty(len(users_BD)), torch.empty_like(users_BD)
    owned = largest = len(items_VD)
    if owned == 0:
        items_VD = items_VD.new_zeros(1, items_VD.shape[1])  # in place of none, with a score of -inf
    items_grad_VD = torch.zeros_like(items_VD)
    if exchange.workers > 1:  # all workers need the same blocks; one worker does not need to synchronise with its GPU
        largest = int(exchange.all_max(torch.tensor([largest], device=items_VD.device)))
    pairs = max(1, _SCORES // max(1, largest))
    for start in range(0, len(users_BD), pairs):
        block = slice(start, start + pairs)
        owned_b = positive_B[block] >= 0
        index_b = torch.where(owned_b, positive_B[block], 0)
        users_bD = users_BD[block] / temperature
        scores_bV = users_bD @ items_VD.T
        if owned == 0:
            scores_bV.fill_(-torch.inf)
        positive_b = scores_bV.gather(1, index_b[:, None]).squeeze(1).masked_fill_(~owned_b, 0.0)
        highest_b = exchange.all_max(scores_bV.amax(1))
        numerator_bV = scores_bV.sub_(highest_b[:, None]).exp_()  # of the softmax
        sums_b, positive_b = exchange.all_add(torch.stack([numerator_bV.sum(1), positive_b]))
        loss_B[block] = sums_b.log() + highest_b - positive_b
        # Gradient of the scores: numerator / sum, minus 1 at the positive. Dividing after the product with the items
        # costs D operations per pair, not V.
        positives_bD = items_VD.index_select(0, index_b).masked_fill_(~owned_b[:, None], 0.0)
        users_grad_BD[block] = (numerator_bV @ items_VD / sums_b[:, None] - positives_bD) / temperature
        items_grad_VD.addmm_(numerator_bV.T, users_bD / sums_b[:, None])
        items_grad_VD.index_add_(0, index_b, users_bD.masked_fill(~owned_b[:, None], 0.0), alpha=-1)
    return loss_B, exchange.all_add(users_grad_BD), items_grad_VD[:owned]
