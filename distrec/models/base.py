"""Interface of models: table rows in, representations out. The score of a pair is the dot product of the two."""

from collections.abc import Callable
from typing import Protocol

from torch import Tensor

from distrec.core.registry import Registry
from distrec.models.config import ModelConfig


class Model(Protocol):
    """Map from table rows to representations. Row-wise: it gets unique rows, and each output depends on its row only,
    because the worker that owns an item computes its representation before sending it."""

    def users(self, rows_UD: Tensor) -> Tensor:
        """Return representations of users, (U, D)."""
        ...

    def items(self, rows_UD: Tensor) -> Tensor:
        """Return representations of items, (U, D)."""
        ...


models: Registry[Callable[[ModelConfig], Model]] = Registry("model")
"""Model classes by name."""


def make_model(config: ModelConfig) -> Model:
    """Return the model that a configuration names. Raises UserError for an unknown name."""
    return models[config.name](config)
