"""The encoder of graph convolutional matrix completion, with embeddings as the features of the nodes."""

import torch
from torch import Tensor, nn
from torch.nn.functional import relu

from distrec.models.base import EmbeddingConfig, Model, ModelInputs, models
from distrec.sharding.differentiable import StepExchange
from distrec.sharding.table import ITEMS, USERS


@models.register("gcmc")
class GCMCConfig(EmbeddingConfig):
    """GC-MC (van den Berg et al., 2017), one layer and one kind of edge: z_i = BN(relu(relu(A1 i + a1) + A3 h_i + a3)),
    where h_i is the sum over its users u of (W u + b) / sqrt(d_u d_i); users likewise, with weights of their own. Each
    step updates all rows."""

    reads = ("graph",)

    def build(self) -> Model:
        return GCMC(self.dim)


class GCMC(Model):
    def __init__(self, dim: int) -> None:
        from distrec.models.message_passing import Convolution  # here: importing PyTorch Geometric takes seconds

        super().__init__()
        self.to_items, self.to_users = Convolution(dim), Convolution(dim)
        self.dense_users, self.dense_items = DenseLayer(dim), DenseLayer(dim)

    def encode(self, inputs: ModelInputs) -> tuple[Tensor, Tensor]:
        graph = inputs.graph
        assert graph is not None
        users_VD, items_VD = inputs.users[USERS], inputs.items[ITEMS]
        from_items_VD = self.to_users(graph.fetch(self.to_users.linear(items_VD)), graph.adjacency, graph.transposed)
        partial_CD = self.to_items(self.to_items.linear(users_VD), graph.transposed, graph.adjacency)
        from_users_VD = graph.sum(partial_CD)
        users_VD = self.dense_users(users_VD, from_items_VD, graph.exchange)
        return users_VD, self.dense_items(items_VD, from_users_VD, graph.exchange)


class DenseLayer(nn.Module):
    """BN(relu(relu(A1 x + a1) + A3 h + a3))."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.own, self.neighbours, self.norm = nn.Linear(dim, dim), nn.Linear(dim, dim), ShardedBatchNorm(dim)

    def forward(self, rows_VD: Tensor, sums_VD: Tensor, exchange: StepExchange) -> Tensor:
        normalized_VD: Tensor = self.norm(relu(relu(self.own(rows_VD)) + self.neighbours(sums_VD)), exchange)
        return normalized_VD


class ShardedBatchNorm(nn.BatchNorm1d):
    """Batch normalisation over the rows of all workers: what one worker computes of all of them."""

    def forward(self, rows_VD: Tensor, exchange: StepExchange) -> Tensor:  # type: ignore[override]
        if not self.training:
            return super().forward(rows_VD)
        count = exchange.all_sum(rows_VD.new_full((), len(rows_VD)))
        mean_D = exchange.all_sum(rows_VD.sum(0)) / count
        centred_VD = rows_VD - mean_D
        variance_D = exchange.all_sum(centred_VD.square().sum(0)) / count
        with torch.no_grad():
            assert self.running_mean is not None and self.running_var is not None and self.momentum is not None
            self.running_mean.lerp_(mean_D, self.momentum)
            self.running_var.lerp_(variance_D * count / (count - 1).clamp(min=1), self.momentum)
        return centred_VD * (variance_D + self.eps).rsqrt() * self.weight + self.bias
