"""From the rows that a training step has read to this worker's share of the loss."""

from dataclasses import fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from distrec.losses import LossInputs
from distrec.models.base import EmbeddingConfig, History, ModelInputs
from distrec.models.scoring import l2_normalize
from distrec.sampling.batch import Batch
from distrec.sampling.dropout import dropout_mask
from distrec.sharding.collectives import LookupPlan
from distrec.sharding.device_copy import to_device
from distrec.sharding.differentiable import StepExchange
from distrec.sharding.table import ITEMS, USERS
from distrec.training.loss_inputs import LOGIT, REPRESENTATION, LossInputBuilder, fetches_items
from distrec.training.sharded_model import ShardedModel

# Arrays of a batch that are only read on the host.
_ON_HOST = ("epoch", "step", "pairs", "items_U", "item_splits_W", "ordinal_B")
_DEVICE_ARRAYS = tuple(field.name for field in fields(Batch) if field.name not in _ON_HOST)

OCCURRENCES = "occurrences"
"""Name of a column of zeros beside the items' rows, whose gradient counts the uses of an item in the step."""

Leaves = dict[str, Tensor]
"""Rows of each table that a step reads, (U, D), float32; the gradients of these are applied."""


class ForwardPass:
    """The forward pass of a step. All workers of the group make the same calls in the same order.

    Args:
        sharded: the worker's shards of the model.
    """

    def __init__(self, sharded: ShardedModel) -> None:
        self._sharded, self._config, self._loss = sharded, sharded.config, sharded.config.loss
        dataset, reads = sharded.dataset, self._loss.needs()
        self.whole_graph = sharded.graph is not None
        """A step reads all rows of both sides."""
        self.all_items = self.whole_graph or "catalogue" in reads
        """A step reads all items of this worker."""
        self._loss_fetches = fetches_items(reads, sharded.names_of(ITEMS, of_loss=True))
        self.fetches = self._loss_fetches or "history" in sharded.reads
        """A step fetches items from the workers that own them."""
        self._degree_V: Tensor | None = None
        if "degree_B" in reads:
            (self._degree_V,) = to_device([sharded.owned_degrees(USERS).astype(np.float32)], sharded.device)
        if "positive_degree_B" in reads:
            self._item_degrees = dataset.item_degrees().astype(np.float32)
        degrees = dataset.user_degrees()
        self._facts = {"items": dataset.manifest.items, "mean_degree": dataset.manifest.train / (degrees > 0).sum()}
        self._present: tuple[Batch, dict[str, Tensor]] | None = None

    def arrays(self, batch: Batch) -> dict[str, Tensor]:
        """Return the arrays of a batch that a step reads, on the device: those of the last call, or copied now."""
        if self._present is None or self._present[0] is not batch:
            arrays = [getattr(batch, name) for name in _DEVICE_ARRAYS]
            self.put(batch, dict(zip(_DEVICE_ARRAYS, to_device(arrays, self._sharded.device), strict=True)))
        assert self._present is not None
        return self._present[1]

    def put(self, batch: Batch, arrays: dict[str, Tensor]) -> None:
        """Take these, which are on the device, as the arrays of a batch."""
        self._present = batch, arrays

    def share(self, batch: Batch, plan: LookupPlan | None, leaves: Leaves, exchange: StepExchange) -> Tensor:
        """Return this worker's share of the loss of the global batch, ().

        Args:
            batch: this worker's part of the step.
            plan: how items are fetched; None where a step fetches none.
            leaves: the rows that were read, and OCCURRENCES where they are counted.
            exchange: the collectives of this step.
        """
        users, items = self._representations(batch, plan, leaves, exchange)
        zeros_U1 = items.pop(OCCURRENCES, None)
        share = self._loss.share(self._inputs(batch, users, items, exchange))
        if zeros_U1 is not None:
            share = share + (zeros_U1[:, 0] * self._occurrences(batch, len(zeros_U1))).sum()
        return share

    def inputs(self, batch: Batch, plan: LookupPlan | None, leaves: Leaves, exchange: StepExchange) -> LossInputs:
        """Return the inputs of the loss; arguments as of `share`, without OCCURRENCES."""
        return self._inputs(batch, *self._representations(batch, plan, leaves, exchange), exchange)

    def _representations(
        self, batch: Batch, plan: LookupPlan | None, leaves: Leaves, exchange: StepExchange
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return representations and rows of the users and of the items of a step, as in `LossInputBuilder`: encode,
        and fetch items from their owners."""
        arrays, reads, names_of = self.arrays(batch), self._loss.needs(), self._sharded.names_of
        values: dict[str, dict[str, Tensor]] = {}
        for entity, rows_XD, raw in zip(
            (USERS, ITEMS),
            self._encode(arrays, plan, leaves, exchange),
            ("user_rows_BD", "positive_rows_BD"),
            strict=True,
        ):
            names = names_of(entity, of_loss=True) + (names_of(entity) if raw in reads else [])
            names += [OCCURRENCES] if OCCURRENCES in leaves and entity == ITEMS else []
            rows = {name: leaves[name] for name in names}
            if self.whole_graph and entity == USERS:
                rows = {name: leaf.index_select(0, arrays["users_U"].long()) for name, leaf in rows.items()}
            elif plan is not None and entity == ITEMS and self._loss_fetches:
                rows = {name: self._requested(leaf, plan) for name, leaf in rows.items()}
                rows_XD = rows_XD if self.whole_graph else self._requested(rows_XD, plan)
            values[entity] = self._split(rows_XD) | rows
        if plan is not None and self._loss_fetches:
            # The owner of an item computes its representation once for all workers that request it.
            fetched = exchange.fetch(plan, *values[ITEMS].values())
            values[ITEMS] = dict(zip(values[ITEMS], fetched, strict=True))
        return values[USERS], values[ITEMS]

    def _encode(
        self, arrays: dict[str, Tensor], plan: LookupPlan | None, leaves: Leaves, exchange: StepExchange
    ) -> tuple[Tensor, Tensor]:
        """Return representations of the users and items whose rows were read, of unit length under cosine.

        Of a model that reads the graph, those of the users of the batch and of the items that workers request.
        """
        sharded, model, history = self._sharded, self._sharded.model, None
        if "history" in sharded.reads:
            assert plan is not None
            index_UH = arrays["history_index"].view(-1, sharded.source.needs.history).long()
            history = History(index_UH, lambda rows: exchange.fetch(plan, self._requested(rows, plan))[0])
        users, items = ({name: leaves[name] for name in sharded.names_of(entity)} for entity in (USERS, ITEMS))
        graph = None if sharded.graph is None else sharded.graph.within(exchange)
        inputs = ModelInputs(users, items, history, graph)
        model.train()
        if graph is None:
            users_XD, items_XD = model.encode(inputs)
        else:
            items_R = plan.rows_R if plan is not None and self._loss_fetches else None
            users_XD, items_XD = model.encode_rows(inputs, arrays["users_U"].long(), items_R)
        if sharded.similarity == "cosine":
            return l2_normalize(users_XD), l2_normalize(items_XD)
        return users_XD, items_XD

    def _requested(self, rows: Tensor, plan: LookupPlan) -> Tensor:
        """Return the rows that are requested, if all items were read."""
        return rows.index_select(0, plan.rows_R) if self.all_items else rows

    def _split(self, rows_XD: Tensor) -> dict[str, Tensor]:
        """Return representations, and the logits of a model that has them, by name."""
        if not self._sharded.logits:
            return {REPRESENTATION: rows_XD}
        return {REPRESENTATION: rows_XD[:, :-1], LOGIT: rows_XD[:, -1:]}

    def _inputs(
        self, batch: Batch, users: dict[str, Tensor], items: dict[str, Tensor], exchange: StepExchange
    ) -> LossInputs:
        """Return the inputs of the loss, from what `_representations` returns."""
        arrays, sharded, model = self.arrays(batch), self._sharded, self._config.model
        others: dict[str, Any] = dict(self._facts)
        assert isinstance(model, EmbeddingConfig), model
        if self._degree_V is not None:
            others["degree_B"] = self._degree_V[arrays["users_U"].long()].index_select(0, arrays["user_index_B"])
        if "positive_degree_B" in self._loss.needs():
            others["positive_degree_B"] = self._degrees_of_positives(batch)
        if model.user_dropout:
            users_BD = users[REPRESENTATION].index_select(0, arrays["user_index_B"].long())
            share, width, seed = model.user_dropout, users_BD.shape[1], self._config.run.seed
            mask_BD = dropout_mask(seed, batch.epoch, batch.ordinal_B, share, width)
            users_BD = users_BD * to_device([mask_BD], sharded.device)[0]
            users[REPRESENTATION] = l2_normalize(users_BD) if model.user_dropout_before_norm else users_BD
        builder = LossInputBuilder(
            batch,
            arrays,
            sharded.source.config,
            users,
            items,
            exchange,
            sharded.exchange,
            normalized=sharded.similarity == "cosine",
            sums_exponentials=self._loss.sums_exponentials,
            users_of_pairs=model.user_dropout > 0,
        )
        return builder.build(self._loss.needs(), sharded.own_tables, **others)

    def _degrees_of_positives(self, batch: Batch) -> Tensor:
        """Return the training interactions of each pair's positive, (B,)."""
        if "positive_degree_B" in (arrays := self.arrays(batch)):
            return arrays["positive_degree_B"]
        owner_U = np.repeat(np.arange(self._sharded.exchange.workers), batch.item_splits_W)
        item_U = self._sharded.partitions[ITEMS].row(batch.items_U.astype(np.int64), owner_U)
        return to_device([self._item_degrees[item_U[batch.positive_index_B]]], self._sharded.device)[0]

    def _occurrences(self, batch: Batch, items: int) -> Tensor:
        """Return how often the pairs of this worker use each of their items, as positive or negative, (U,)."""
        arrays = self.arrays(batch)
        positive_U, negative_U = (
            torch.bincount(arrays[name].long(), minlength=items) for name in ("positive_index_B", "negative_index")
        )
        times = len(batch.user_index_B) if self._sharded.source.config.shared else 1
        return (positive_U + times * negative_U).float()
