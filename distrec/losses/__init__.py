"""Scores in, one loss a pair out; losses over the whole catalogue see representations. Importing registers them all."""

from distrec.losses import pairwise, sampled_softmax  # noqa: F401
from distrec.losses.base import Loss, Scores, losses
from distrec.losses.exact_softmax import catalogue_losses

TAKES_LOG_Q = ("ssm",)
"""Losses that can correct for how negatives are drawn."""

__all__ = ["TAKES_LOG_Q", "Loss", "Scores", "catalogue_losses", "losses"]
