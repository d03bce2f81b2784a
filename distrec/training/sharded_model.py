"""One worker's shards of a model: its tables and parameters, and the representations that it makes of them."""

from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from distrec.data.dataset import Dataset
from distrec.models.base import EmbeddingConfig, History, ModelInputs, Scorer
from distrec.models.graph import Graph
from distrec.optim.dense import load_module
from distrec.sampling.source import BatchSource
from distrec.sharding.checkpoint import Rows, Values, load_shard
from distrec.sharding.collectives import Exchange
from distrec.sharding.device_copy import to_device
from distrec.sharding.differentiable import StepExchange
from distrec.sharding.partition import Partition
from distrec.sharding.table import ITEMS, USERS, Table
from distrec.training.config import Config

_USERS = 8192  # users whose histories are held at a time in an evaluation


class ShardedModel(Scorer):
    """Tables, model and exchange of one worker. All workers of the group make the same calls in the same order.

    Args:
        config: configuration of the run.
        dataset: the prepared data.
        device: where the shards live.
    """

    def __init__(self, config: Config, dataset: Dataset, device: torch.device) -> None:
        assert isinstance(config.model, EmbeddingConfig), config.model
        self.config, self.dataset, self.device = config, dataset, device
        self.exchange = Exchange(device, config.train.send_bfloat16)
        m, workers = dataset.manifest, self.exchange.workers
        self.partitions = {USERS: Partition(m.users, m.buckets, workers), ITEMS: Partition(m.items, m.buckets, workers)}
        self.reads, self.similarity, self.logits = config.model.reads, config.model.similarity, config.model.logits
        self.dtype = torch.bfloat16 if config.model.bfloat16 else torch.float32
        self.specs = {spec.name: spec for spec in config.table_specs}
        self.own_tables = {spec.name for spec in config.loss.tables()}
        self.tables = {name: self._initial_table(name) for name in self.specs}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.run.seed)
            self.model = config.model.build().to(device)
        group = (self.exchange.rank, workers)
        self.source = BatchSource(
            dataset, config.effective_sampling, config.run.seed, config.train.batch_size, *group, config.batch_needs
        )

    def _initial_table(self, name: str) -> Table:
        spec, worker = self.specs[name], self.exchange.rank
        partition = self.partitions[spec.entity]
        degree_V = self.owned_degrees(spec.entity) if spec.init.reads_degrees else None
        rows_VD = spec.init.rows(self.config.run.seed, name, partition, worker, spec.width, degree_V)
        return Table(name, partition, worker, rows_VD.to(self.device, self.dtype), spec.decay, spec.bounds)

    def owned_degrees(self, entity: str) -> np.ndarray:
        """Return the training interactions of this worker's users or items, (V,)."""
        degrees = self.dataset.user_degrees() if entity == USERS else self.dataset.item_degrees()
        owned: np.ndarray = degrees[self.partitions[entity].rows_of(self.exchange.rank)]
        return owned

    @cached_property
    def graph(self) -> Graph | None:
        """The graph of the training interactions, if the model reads it. Its first use is collective."""
        if "graph" not in self.reads:
            return None
        return Graph.build(self.source, self.partitions[ITEMS].size(self.exchange.rank), self.exchange)

    def names_of(self, entity: str, of_loss: bool = False) -> list[str]:
        """Return the names of the tables of an entity: those of the model, or those of the loss."""
        own = self.own_tables
        return [name for name, spec in self.specs.items() if spec.entity == entity and (name in own) == of_loss]

    def all_rows(self, entity: str) -> Tensor:
        """Return the local indices of all rows of an entity, (V,)."""
        return torch.arange(self.partitions[entity].size(self.exchange.rank), device=self.device)

    def load_rows(self, folder: Path) -> tuple[dict[str, Rows], Values, Values]:
        """Restore rows and parameters from a checkpoint of any number of workers.

        Returns:
            (all per-row tensors of this worker's shards by table, `meta`, state equal at all workers), as saved.
        """
        partitions = {name: table.partition for name, table in self.tables.items()}
        saved, meta, shared = load_shard(folder, self.exchange.rank, partitions)
        for name, table in self.tables.items():
            table.stored_VD.copy_(saved[name]["rows"])
        load_module(self.model, shared)
        return saved, meta, shared

    @torch.no_grad()
    def representations(self, users: np.ndarray) -> tuple[Tensor, Tensor]:
        """Return representations of some users of this worker, and of all its items."""
        self.model.eval()
        items = {name: self.tables[name].read_all() for name in self.names_of(ITEMS)}
        exchange = StepExchange(self.exchange)
        if self.graph is not None:
            rows = {name: self.tables[name].read_all() for name in self.names_of(USERS)}
            inputs = ModelInputs(rows, items, graph=self.graph.within(exchange))
            (users_U,) = to_device([users], self.device)
            return self.model.encode_rows(inputs, users_U, None)
        chunks = [users]
        if "history" in self.reads:  # exchanged: all workers take the same number of chunks
            longest = int(self.exchange.all_max(torch.tensor([len(users)], device=self.device)))
            chunks = np.array_split(users, max(1, -(-longest // _USERS)))
        parts = []
        for chunk in chunks:
            (index,) = to_device([chunk], self.device)
            rows = {name: self.tables[name].read(index) for name in self.names_of(USERS)}
            users_UD, items_VD = self.model.encode(ModelInputs(rows, items, self._history(chunk, exchange)))
            parts.append(users_UD)
        return parts[0] if len(parts) == 1 else torch.cat(parts), items_VD

    def _history(self, users: np.ndarray, exchange: StepExchange) -> History | None:
        if "history" not in self.reads:
            return None
        items_U, splits_W, index = self.source.history_of(users)
        plan = self.exchange.plan_lookup(items_U, splits_W.tolist()).result()
        (index_UH,) = to_device([index.reshape(-1, self.source.needs.history)], self.device)
        return History(index_UH.long(), lambda rows_VD: exchange.fetch(plan, rows_VD.index_select(0, plan.rows_R))[0])
