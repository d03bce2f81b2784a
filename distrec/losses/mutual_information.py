"""Losses that weigh the positive against the log-sum-exp of its negatives: MINE, MINE+ and the bilateral softmax."""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from distrec.losses.base import Loss, LossInputs, losses


def log_sum_negatives(step: LossInputs, temperature: float) -> tuple[Tensor, Tensor]:
    """Return log sum_j e^{s_uj / t} of each pair, 0 without negatives, and the log of their number, (B,)."""
    some_B, log_n_B = step.unmasked_B > 0, step.unmasked_B.clamp(min=1).log()
    # torch.where gives the -inf of a pair without negatives no gradient.
    return torch.where(some_B, step.log_sum_exp(temperature), 0.0), log_n_B


@losses.register("mine")
class Mine(Loss):
    """-s_ui + LSE_j(s_uj), the bound of Donsker and Varadhan on mutual information (MINE paper, Eq. 10)."""

    reads = ("positive_B", "negative_BN", "unmasked_B")
    sums_exponentials = True

    def per_pair(self, step: LossInputs) -> Tensor:
        log_sum_B, _ = log_sum_negatives(step, 1.0)
        return torch.where(step.unmasked_B > 0, log_sum_B - step.positive_B, 0.0)


@losses.register("mine_plus")
class MinePlus(Loss):
    """-s_ui/t + lam LSE_j(s_uj/t) on cosines (MINE paper, Eq. 16)."""

    temperature: float = Field(0.4, gt=0)
    """Temperature t; published 0.4 (Gowalla), 0.5 (Yelp2018)."""
    negative_weight: float = Field(1.2, gt=0)
    """Weight lam of the negatives; published 1.2 (Gowalla), 1.1 (Yelp2018)."""

    reads = ("positive_B", "negative_BN", "unmasked_B")
    sums_exponentials = True
    similarity = "cosine"

    def per_pair(self, step: LossInputs) -> Tensor:
        log_sum_B, _ = log_sum_negatives(step, self.temperature)
        return torch.where(
            step.unmasked_B > 0, self.negative_weight * log_sum_B - step.positive_B / self.temperature, 0.0
        )


@losses.register("bsl")
class BilateralSoftmax(Loss):
    """Bilateral softmax loss (Wu et al., ICDE 2024; MML paper, Eq. 5), in the forms below.

    power, reweight: -s_ui/t + b LSE_j(s_uj/t). power, multi: -log mean_{i of u} e^{s_ui/t} + b (LSE_j(s_uj/t) - log N),
    the mean over the pairs of the user in the global batch. paper: -t log mean_{i of u} e^{s_ui/t}
    + t2 log mean_j e^{s_uj/t2}. The published settings are those of power.
    """

    form: Literal["power", "paper"] = "power"
    """`power` is what the authors ran: one temperature, and an exponent of the negatives; `paper` has two temperatures.
    """
    mode: Literal["multi", "reweight"] = "multi"
    """For `power`: `multi` averages over the user's pairs in the batch, `reweight` takes each pair alone."""
    temperature: float = Field(0.08, gt=0)
    """Temperature t; for `paper` that of the positives. Published 0.08 (Gowalla), 0.11 (Yelp2018)."""
    exponent: float = Field(1.22, gt=0)
    """For `power`: exponent b of the negatives. Published 1.22 (Gowalla), 1.10 (Yelp2018)."""
    negative_temperature: float = Field(0.1, gt=0)
    """For `paper`: temperature t2 of the negatives."""

    reads = ("positive_B", "negative_BN", "unmasked_B", "user_B")
    sums_exponentials = True

    def unused(self) -> set[str]:
        return {"negative_temperature"} if self.form == "power" else {"exponent", "mode"}

    def per_pair(self, step: LossInputs) -> Tensor:
        t = self.temperature
        if self.form == "paper":
            log_sum_B, log_n_B = log_sum_negatives(step, self.negative_temperature)
            loss_B = self.negative_temperature * (log_sum_B - log_n_B) - t * _log_mean_of_user(step, t)
        elif self.mode == "multi":
            log_sum_B, log_n_B = log_sum_negatives(step, t)
            loss_B = self.exponent * (log_sum_B - log_n_B) - _log_mean_of_user(step, t)
        else:
            log_sum_B, _ = log_sum_negatives(step, t)
            loss_B = self.exponent * log_sum_B - step.positive_B / t
        return torch.where(step.unmasked_B > 0, loss_B, 0.0)


def _log_mean_of_user(step: LossInputs, temperature: float) -> Tensor:
    """Return log of the mean of e^{s/t} over the pairs of each pair's user, (B,)."""
    logits_B, user_B = step.positive_B / temperature, step.user_B
    users = step.users
    highest_U = logits_B.new_full((users,), -torch.inf).scatter_reduce(0, user_B, logits_B.detach(), "amax")
    numerator_B = (logits_B - highest_U[user_B]).exp()
    sums_U = numerator_B.new_zeros(users).index_add(0, user_B, numerator_B)
    counts_U = numerator_B.new_zeros(users).index_add(0, user_B, torch.ones_like(logits_B))
    return (sums_U.log() - counts_U.log() + highest_U)[user_B]
