"""Scores in, one loss a pair out. Importing the package registers every loss."""

from distrec.losses import pairwise, softmax  # noqa: F401
from distrec.losses.loss import Loss, Scores, losses

TAKES_LOG_Q = ("ssm",)
"""Losses that can correct for how negatives are drawn."""

__all__ = ["TAKES_LOG_Q", "Loss", "Scores", "losses"]
