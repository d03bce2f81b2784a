"""Non-linear matrix factorisation: a network of two layers for users, and one for items."""

from typing import Literal

from torch import Tensor, nn

from distrec.models.base import EmbeddingConfig, Model, models


@models.register("mlp")
class MLPConfig(EmbeddingConfig):
    """Non-linear matrix factorisation: z_u = A2 relu(A1 u + a1) + a2, items likewise with weights of their own
    (PRISM, Section 5)."""

    activation: Literal["relu", "none"] = "relu"
    """Activation after the first layer. none: two affine layers, as in the published code, which drops its result."""

    def build(self) -> Model:
        return MLP(self)


class MLP(Model):
    def __init__(self, config: MLPConfig) -> None:
        super().__init__()
        self.of_users, self.of_items = _network(config), _network(config)

    def users(self, rows_UD: Tensor) -> Tensor:
        users_UD: Tensor = self.of_users(rows_UD)
        return users_UD

    def items(self, rows_RD: Tensor) -> Tensor:
        items_RD: Tensor = self.of_items(rows_RD)
        return items_RD


def _network(config: MLPConfig) -> nn.Module:
    activation = nn.ReLU() if config.activation == "relu" else nn.Identity()
    return nn.Sequential(nn.Linear(config.dim, config.dim), activation, nn.Linear(config.dim, config.dim))
