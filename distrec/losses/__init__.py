"""Scores in, one loss a pair out. Importing the package registers every loss."""

from distrec.losses import pairwise, softmax  # noqa: F401
from distrec.losses.loss import Loss, Scores, losses

__all__ = ["Loss", "Scores", "losses"]
