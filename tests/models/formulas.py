"""Formulas of the models, in plain torch over dense matrices, for one worker; and the training steps of a dense model.

Each takes the configuration, the module (for its parameters only), the rows of all users and items, the interactions as
a dense matrix of zeros and ones (users, items), and the items of each user's history; it returns all representations.
"""

import copy

import torch
from torch.nn.functional import batch_norm, normalize

from distrec.models import models
from distrec.sampling.history import histories


def mf(config, module, users, items, seen, histories, training):
    return users, items


def affine(layer, rows):
    return rows @ layer.weight.T + layer.bias


def mlp(config, module, users, items, seen, histories, training):
    def network(layers, rows):
        hidden = affine(layers[0], rows)
        return affine(layers[2], hidden.clamp(min=0) if config.activation == "relu" else hidden)

    return network(module.of_users, users), network(module.of_items, items)


def simplex(config, module, users, items, seen, histories, training):
    pooled = []
    for user, history in zip(users, histories, strict=True):
        rows = items[history]
        if len(history) == 0:
            pooled.append(torch.zeros_like(user))
        elif config.pooling == "mean":
            pooled.append(rows.mean(0))
        else:
            query = user if config.pooling == "user_attention" else module.query_D
            weights = torch.tanh(affine(module.key, rows)) @ query
            pooled.append(weights.softmax(0) @ rows)
    values = torch.stack(pooled) @ module.value.weight.T
    return config.own_weight * users + (1 - config.own_weight) * values, items


def adjacency(seen):
    """Return D^-1/2 X D^-1/2, 0 where a user or an item has no interactions."""
    degrees = seen.sum(1, keepdim=True).clamp(min=1) * seen.sum(0, keepdim=True).clamp(min=1)
    return seen / degrees.sqrt()


def lightgcn(config, module, users, items, seen, histories, training):
    a, layers = adjacency(seen), [(users, items)]
    for _ in range(config.layers):
        layers.append((a @ layers[-1][1], a.T @ layers[-1][0]))
    return tuple(torch.stack(side).mean(0) for side in zip(*layers, strict=True))


def gcmc(config, module, users, items, seen, histories, training):
    a = adjacency(seen)

    def side(layer, rows, sums):
        hidden = (affine(layer.own, rows).clamp(min=0) + affine(layer.neighbours, sums)).clamp(min=0)
        norm = layer.norm
        return batch_norm(hidden, norm.running_mean, norm.running_var, norm.weight, norm.bias, training, norm.momentum)

    of_items = a.T @ affine(module.to_items.linear, users)
    of_users = a @ affine(module.to_users.linear, items)
    return side(module.dense_users, users, of_users), side(module.dense_items, items, of_items)


def macr(config, module, users, items, seen, histories, training):
    (logit_U, logit_V) = (
        rows @ layer.weight[0] for rows, layer in ((users, module.of_users), (items, module.of_items))
    )
    users, items = users * logit_U.sigmoid()[:, None], items * logit_V.sigmoid()[:, None]
    if training:
        return users, items
    # Of the ranking by (<u, i> - c) sigmoid(p_u) sigmoid(p_i).
    return torch.cat([users, -config.c * logit_U.sigmoid()[:, None]], 1), torch.cat(
        [items, logit_V.sigmoid()[:, None]], 1
    )


FORMULAS = {"macr": macr, "mf": mf, "mlp": mlp, "simplex": simplex, "lightgcn": lightgcn, "gcmc": gcmc}


class DenseModel:
    """A model of one worker by its formula, in float64, trained on the batches of the source by sampled softmax with
    shared negatives."""

    def __init__(self, trainer):
        self.config, self.source, self.module = trainer.config, trainer.source, copy.deepcopy(trainer.model).double()
        self.rows = {name: table.flush().double().requires_grad_() for name, table in trainer.tables.items()}
        dataset = self.source.dataset
        indptr, indices = self.source.interactions_csr
        self.seen = torch.zeros(dataset.manifest.users, dataset.manifest.items, dtype=torch.float64)
        self.histories = [torch.from_numpy(part) for part in self._histories(indptr, indices)]
        for user, (start, stop) in enumerate(zip(indptr, indptr[1:], strict=False)):
            self.seen[user, indices[start:stop]] = 1

    def _histories(self, indptr, indices):
        ids, h = torch.arange(len(indptr) - 1).numpy(), getattr(self.config.model, "history", 1)
        found = histories(self.config.run.seed, ids, indptr, indices, h)
        return [row[row >= 0].astype("int64") for row in found]

    def parameters(self):
        return [*self.rows.values(), *self.module.parameters()]

    def representations(self, training=False):
        model = self.config.model
        arguments = (self.rows["users"], self.rows["items"], self.seen, self.histories, training)
        return FORMULAS[model.name](model, self.module, *arguments)

    def loss(self, batch):
        users, items = self.representations(training=True)
        if self.config.model.similarity == "cosine":
            users, items = normalize(users), normalize(items)
        users = users[torch.from_numpy(batch.users_U).long()][torch.from_numpy(batch.user_index_B).long()]
        items = items[torch.from_numpy(batch.items_U).long()]
        positive_B = (users * items[torch.from_numpy(batch.positive_index_B).long()]).sum(1)
        negative_BN = users @ items[torch.from_numpy(batch.negative_index).long()].T
        negative_BN.view(-1)[torch.from_numpy(batch.masked)] = -torch.inf
        scores = torch.cat([positive_B[:, None], negative_BN], 1) / self.config.loss.temperature
        return (scores.logsumexp(1) - scores[:, 0]).mean()


def own_models():
    """Return the names of the package's models that gradient descent trains."""
    from distrec.models import EmbeddingConfig

    return [
        name
        for name, model in models.items()
        if issubclass(model, EmbeddingConfig) and model.__module__.startswith("distrec.")
    ]
