"""Debiasing baselines: BPR with the regularisers IPL and ReSN, and MACR.

As the PRISM paper (App. D.2) runs them. U: distinct users or items of the global batch.
"""

import torch
from pydantic import Field
from torch import Tensor

from distrec.losses.base import GlobalBatch, Loss, LossInputs, losses
from distrec.losses.pairwise import BPR
from distrec.losses.row_sums import mean_of_negatives, softplus, softplus_


class _Regularized(BPR):
    def needs(self) -> tuple[str, ...]:
        return (*super().needs(), "batch")

    def share(self, step: LossInputs) -> Tensor:
        # Every worker computes the same term of the global batch, and adds its part of it.
        return super().share(step) + self.regularizer(step) / step.workers

    def regularizer(self, step: LossInputs) -> Tensor:
        """Return the regulariser of the global batch, ()."""
        raise NotImplementedError


@losses.register("ipl")
class IPL(_Regularized):
    """BPR plus l times the standard deviation of r_i over the items i of the batch (Liu et al., SIGIR 2023).

    r_i = C_i / Q_i^(2 - gamma), C_i the sum of sigmoid(s_ui) over the pairs of i in the batch, Q_i its training
    interactions.
    """

    weight: float = Field(1.0, ge=0)
    """Weight l of the regulariser; not published."""
    gamma: float = Field(1.5, ge=0)
    """Exponent gamma; published 1.826 (MovieLens-1M), 1.285 (Gowalla), 1.552 (Yelp2018), 1.446 (Amazon-Book)."""

    def needs(self) -> tuple[str, ...]:
        return (*super().needs(), "positive_degree_B")

    def regularizer(self, step: LossInputs) -> Tensor:
        batch: GlobalBatch = step.batch
        _, inverse_B, counts_U = torch.unique(batch.item_ids_B, return_inverse=True, return_counts=True)
        share_B = torch.sigmoid((batch.users_BD * batch.items_BD).sum(1))
        sums_U = share_B.new_zeros(len(counts_U)).index_add(0, inverse_B, share_B)
        degree_B = step.exchange.gather(step.positive_degree_B[:, None])[0][:, 0].to(sums_U.dtype)
        degree_U = torch.ones_like(sums_U).scatter(0, inverse_B, degree_B)  # equal for all pairs of an item
        rate_U = sums_U / degree_U ** (2 - self.gamma)
        variance = (rate_U - rate_U.mean()).square().sum() / max(1, len(rate_U) - 1)
        # The root has no gradient at 0, where all rates are equal.
        return self.weight * variance.clamp(min=1e-24).sqrt() if len(rate_U) > 1 else share_B.sum() * 0


@losses.register("resn")
class ReSN(_Regularized):
    """BPR plus beta |Y Y^T e|^2 / |Y^T e|^2, Y the scores of the batch's users with its items, e all ones (Lin et al.,
    2024).

    It is the squared spectral norm of Y if the column sums of Y are its leading singular vector.
    """

    weight: float = Field(1e-6, ge=0)
    """Weight beta of the regulariser; not published."""

    def regularizer(self, step: LossInputs) -> Tensor:
        users_UD, items_UD = step.batch.unique_users()[0], step.batch.unique_items()[0]
        # Y = users items^T is never formed: each product is one with a vector.
        sums_U = items_UD @ users_UD.sum(0)
        product_U = users_UD @ (items_UD.T @ sums_U)
        tiny = torch.finfo(sums_U.dtype).tiny
        return self.weight * product_U.square().sum() / sums_U.square().sum().clamp(min=tiny)


@losses.register("macr")
class MACRLoss(Loss):
    """bce(s_ui) + a bce(p_i) + b bce(p_u), for the model `macr` (Wei et al., KDD 2021).

    bce(x) is softplus(-x) of the positive plus mean_j softplus(x_j) of the negatives j. The scores are those of the
    model, <u, i> sigmoid(p_u) sigmoid(p_i); the user of a negative is that of the pair.
    """

    item_weight: float = Field(1e-3, ge=0)
    """Weight a of the items' logits."""
    user_weight: float = Field(1e-3, ge=0)
    """Weight b of the users' logits."""

    reads = ("positive_B", "negative_BN", "unmasked_B", "user_logit_B", "positive_logit_B", "negative_logit_BN")

    def per_pair(self, step: LossInputs) -> Tensor:
        unmasked_B, user_B = step.unmasked_B, step.user_logit_B
        masked_BN = step.negative_BN.detach() == -torch.inf
        logit_BN = step.negative_logit_BN.expand_as(step.negative_BN).masked_fill(masked_BN, -torch.inf)
        of_pair_B, of_item_B = (
            softplus(-positive_B) + mean_of_negatives(softplus_, negative_BN, unmasked_B)
            for positive_B, negative_BN in ((step.positive_B, step.negative_BN), (step.positive_logit_B, logit_BN))
        )
        of_user_B = softplus(-user_B) + softplus(user_B) * (unmasked_B > 0)
        return of_pair_B + self.item_weight * of_item_B + self.user_weight * of_user_B
