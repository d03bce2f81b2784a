"""Losses of pairs from scores, and losses over the whole catalogue from representations. Importing registers them."""

from distrec.losses import pairwise, sampled_softmax  # noqa: F401
from distrec.losses.base import Loss, Scores, losses
from distrec.losses.exact_softmax import catalogue_losses

TAKES_LOG_Q = ("ssm",)
"""Losses with a correction for the sampling probability of negatives."""

__all__ = ["TAKES_LOG_Q", "Loss", "Scores", "catalogue_losses", "losses"]
