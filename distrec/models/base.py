"""What a model is to the trainer: table rows in, representations out; the score of a pair is their dot product."""

from typing import Protocol

import torch

from distrec.core.registry import Registry
from distrec.models.config import ModelConfig


class Model(Protocol):
    """Maps rows of the user and the item table to representations: unique rows, never pairs, and each by itself, as the
    worker that owns an item computes its representation before it travels."""

    def users(self, rows_UD: torch.Tensor) -> torch.Tensor:
        """Representations of users, (U, D)."""
        ...

    def items(self, rows_UD: torch.Tensor) -> torch.Tensor:
        """Representations of items, (U, D)."""
        ...


models: Registry[type] = Registry("model")
"""Classes with the methods of `Model`, made from a ModelConfig."""


def make_model(config: ModelConfig) -> Model:
    """The model that a configuration names. Raises UserError for an unknown name."""
    return models[config.name](config)
