"""Losses. Importing the package registers them."""

from distrec.losses import (  # noqa: F401
    alignment,
    debiased,
    exact_softmax,
    margins,
    mutual_information,
    pairwise,
    pointwise,
    popularity,
    sampled_softmax,
)
from distrec.losses.base import Loss, LossInputs, losses

__all__ = ["Loss", "LossInputs", "losses"]
