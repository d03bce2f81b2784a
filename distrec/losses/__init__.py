"""Losses. Importing the package registers them."""

from distrec.losses import exact_softmax, pairwise, sampled_softmax  # noqa: F401
from distrec.losses.base import Loss, LossInputs, losses

__all__ = ["Loss", "LossInputs", "losses"]
