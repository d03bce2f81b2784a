"""Gradient descent on one worker: the training step, and its checkpoints. Independent of Ray."""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distrec.data.dataset import Dataset
from distrec.models.base import Emit, Scorer
from distrec.optim.dense import DenseOptimizer
from distrec.optim.schedule import plateau_factor
from distrec.optim.sparse import SparseOptimizer
from distrec.sampling.batch import Batch
from distrec.sharding.checkpoint import save_shard
from distrec.sharding.collectives import LookupPlan
from distrec.sharding.differentiable import StepExchange
from distrec.sharding.table import ITEMS, USERS
from distrec.tracking.meters import StepMeters
from distrec.training.config import Config
from distrec.training.device_conditions import prevented
from distrec.training.device_steps import DeviceSteps, pairs_only, sum_of_squares
from distrec.training.forward import OCCURRENCES, ForwardPass, Leaves
from distrec.training.sharded_model import ShardedModel


class Trainer:
    """The training state of one worker; implements `Learner`.

    Args:
        config: configuration of the run.
        dataset: the prepared data.
        device: where the shards live.
    """

    def __init__(self, config: Config, dataset: Dataset, device: torch.device) -> None:
        self.config, self.device = config, device
        if config.train.deterministic and device.type == "cuda":
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # torch asks for it
            torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        self.sharded = ShardedModel(config, dataset, device)
        self.model, self.tables, self.exchange = self.sharded.model, self.sharded.tables, self.sharded.exchange
        self.source = self.sharded.source
        steps = config.train.epochs * self.source.steps
        self.forward = ForwardPass(self.sharded)
        users, items = dataset.manifest.users, dataset.manifest.items
        self._why_on_host = prevented(config, users, items, device, self.exchange.workers)
        self.optimizers = {
            name: SparseOptimizer(
                table, config.optim, steps, all_rows=self.forward.whole_graph, ahead=self._why_on_host is None
            )
            for name, table in self.tables.items()
        }
        self.dense = DenseOptimizer(self.model, config.optim, steps, self.exchange)
        self.meters = StepMeters()
        self._counts = config.optim.decay.scope == "occurrences"
        self._prefetched_lookup: tuple[Batch, Future[LookupPlan]] | None = None
        self._following: Batch | None = None
        self._gradient_norm: float | None = None
        self.exchanges = False
        self.device_steps: DeviceSteps | None = None
        if self._why_on_host is None:
            self.source = pairs_only(self.source)
            self.device_steps = DeviceSteps(self, self.source)

    @property
    def scorer(self) -> Scorer:
        """The scores of the present tables."""
        return self.sharded

    def describe(self) -> str:
        """Return how rows outside the batch are updated, by table, and what of their decay float32 cannot resolve."""
        how = {name: optimizer.idle_rows for name, optimizer in self.optimizers.items()}
        texts = [f"{name} outside the batch {text}" for name, text in how.items()]
        if self.forward.whole_graph:
            texts = ["each step reads the whole graph, and updates all rows in one sweep, full decay included"]
        elif len(set(how.values())) == 1:
            texts = [f"rows outside the batch {how[ITEMS]}"]
        texts += [note for optimizer in self.optimizers.values() if (note := optimizer.precision_note)]
        text = f"optimizer: {'; '.join(texts)}"
        if self.device_steps is not None:
            return f"{text}; {self.device_steps.describe()}"
        if self.device.type == "cuda":
            return f"{text}; negatives are drawn on the host, which launches each operation ({self._why_on_host})"
        return text

    def observe(self, watched: Sequence[float]) -> None:
        """Set the learning rate that follows these values of the watched metric, one of each evaluation so far."""
        factor = plateau_factor(self.config.optim.schedule, watched)
        for optimizer in (*self.optimizers.values(), *self.dense.optimizers.values()):
            optimizer.lr_factor = factor

    def timing(self) -> dict[str, float]:
        """Return the seconds spent in each part of the steps since the last call."""
        seconds = self.meters.snapshot()
        self.meters.reset()
        return seconds

    def diagnostics(self) -> dict[str, float]:
        """Return the norm of the gradient of the last step of an epoch, before clipping."""
        return {} if self._gradient_norm is None else {"gradient_norm": self._gradient_norm}

    def train_epoch(self, epoch: int, first_step: int, batches: Iterator[Batch], emit: Emit) -> float:
        """Take the steps of an epoch; see `Learner.train_epoch`."""
        in_order = self.config.train.deterministic and self.device.type == "cuda"
        if not in_order or torch.are_deterministic_algorithms_enabled():
            return self._train_epoch(epoch, first_step, batches, emit)
        torch.use_deterministic_algorithms(True)  # it imports torch's compiler, which takes seconds
        try:
            return self._train_epoch(epoch, first_step, batches, emit)
        finally:
            torch.use_deterministic_algorithms(False)

    def _train_epoch(self, epoch: int, first_step: int, batches: Iterator[Batch], emit: Emit) -> float:
        if self.device_steps is not None:
            loss = self.device_steps.train_epoch(epoch, first_step, batches, emit)
            self._gradient_norm = self.device_steps.gradient_norm
            return loss
        loss_sum = torch.zeros((), dtype=torch.float64, device=self.device)
        for step in range(first_step, self.source.steps):
            with self.meters.part("wait"):
                batch = self._following or next(batches)
                self._following = next(batches, None)
            assert (batch.epoch, batch.step) == (epoch, step), (batch.epoch, batch.step, epoch, step)
            loss_sum += self.step(batch, self._following) * batch.pairs
            emit(step + 1, loss_sum)
        return loss_sum.item()

    def step(self, batch: Batch, following: Batch | None = None) -> Tensor:
        """Take one step. Return this worker's share of the loss of the global batch: 0-dim tensor, not synchronised.

        A step without pairs on any worker (tiny data) changes nothing, neither momentum nor decay.

        Args:
            batch: this worker's part of the step.
            following: this worker's part of the next step, if there is one. Its lookup plan is made, and its arrays
                are copied to the device, while this step is computed.
        """
        if batch.pairs == 0:
            return torch.zeros((), device=self.device)
        with self.meters.part("look_up"):
            rows, plan = self._rows(batch, following)
            leaves = self._leaves(rows)
            if self._counts:
                leaves[OCCURRENCES] = torch.zeros(len(rows[ITEMS]), 1, device=self.device, requires_grad=True)
        with self.meters.part("compute"):
            share = self._backward(batch, plan, leaves)
        with self.meters.part("update"):
            self._update(batch, rows, leaves)
        if following is not None:
            with self.meters.part("look_up"):
                self.forward.arrays(following)  # a GPU computes this step meanwhile
        return share

    def _leaves(self, rows: dict[str, Tensor]) -> Leaves:
        """Return the rows of each table that the step reads; of a whole table no copy."""
        entities = {name: spec.entity for name, spec in self.sharded.specs.items()}
        return {
            name: (table.read_all() if self.forward.whole_graph else table.read(rows[entities[name]]))
            .detach()
            .requires_grad_()
            for name, table in self.tables.items()
        }

    def _update(self, batch: Batch, rows: dict[str, Tensor], leaves: Leaves) -> None:
        """Apply the gradients of rows and parameters."""
        grads = self.gradients_of(leaves)
        item_counts_R1 = grads.pop(OCCURRENCES, None)
        dense, clip_norm = self.dense.gradient(), self.config.optim.clip_norm
        ends = batch.step + 1 == self.source.steps
        if ends or clip_norm is not None:
            norm = self.norm(list(grads.values()), dense)
            if ends:
                self._gradient_norm = norm.item()
            if clip_norm is not None:
                self.clip([*grads.values(), *([] if dense is None else [dense])], norm)
        if item_counts_R1 is not None:
            self._decay_by_occurrence(batch, leaves, grads, item_counts_R1)
        for name, optimizer in self.optimizers.items():
            optimizer.step(rows[self.sharded.specs[name].entity], grads[name])
        if dense is not None:
            self.dense.step(dense)

    def gradients_of(self, leaves: Leaves) -> Leaves:
        """Return the gradients of leaves, 0 where the loss does not read a table."""
        return {name: torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for name, leaf in leaves.items()}

    def clip(self, grads: list[Tensor], norm: Tensor) -> None:
        """Scale gradients of this norm down to `optim.clip_norm`."""
        clip_norm = self.config.optim.clip_norm
        assert clip_norm is not None
        factor = (clip_norm / (norm + 1e-6)).clamp(max=1.0).float()  # as torch.nn.utils.clip_grad_norm_
        for grad in grads:
            grad.mul_(factor)

    def norm(self, grads: list[Tensor], dense: Tensor | None) -> Tensor:
        """Return the norm of the gradients of all workers, ()."""
        norm2 = self.exchange.all_add(sum_of_squares(grads).view(1))[0]
        if dense is not None:
            norm2 = norm2 + dense.square().sum()
        return norm2.sqrt()

    def _decay_by_occurrence(self, batch: Batch, leaves: Leaves, grads: Leaves, item_counts_R1: Tensor) -> None:
        """Add the gradient of strength / (2 B) |row|^2 for each occurrence of a row in the pairs of all workers."""
        arrays, users = self.forward.arrays(batch), len(leaves[USERS])
        index_B = arrays["user_index_B"].long()
        index_B = arrays["users_U"].long()[index_B] if self.forward.whole_graph else index_B
        counts = {ITEMS: item_counts_R1, USERS: torch.bincount(index_B, minlength=users)[:, None].float()}
        for name, grad in grads.items():
            strength = self.config.optim.decay.strength_of(name, self.tables[name].decay)
            grad.addcmul_(leaves[name].detach(), counts[self.sharded.specs[name].entity], value=strength / batch.pairs)

    def _rows(self, batch: Batch, following: Batch | None) -> tuple[dict[str, Tensor], LookupPlan | None]:
        """Return local indices of the rows of each entity that the step reads, and the plan of its look-up, if any."""
        forward = self.forward
        users = self.sharded.all_rows(USERS) if forward.whole_graph else forward.arrays(batch)["users_U"].long()
        plan, items = None, users.new_empty(0)
        if forward.fetches:
            plan = self._lookup_plan(batch)
            items = plan.rows_R
            if following is not None and following.pairs:
                self._prefetched_lookup = following, self._plan_lookup(following)
        if forward.all_items:
            items = self.sharded.all_rows(ITEMS)
        return {USERS: users, ITEMS: items}, plan

    def _plan_lookup(self, batch: Batch) -> Future[LookupPlan]:
        return self.exchange.plan_lookup(batch.items_U, batch.item_splits_W.tolist())

    def _lookup_plan(self, batch: Batch) -> LookupPlan:
        """Return the plan prefetched during the previous step, or made now."""
        prefetched, self._prefetched_lookup = self._prefetched_lookup, None
        if prefetched is not None and prefetched[0] is batch:
            return prefetched[1].result()
        return self._plan_lookup(batch).result()

    def _backward(self, batch: Batch, plan: LookupPlan | None, leaves: Leaves) -> Tensor:
        """Return this worker's share of the loss, (), and set the gradients of leaves and parameters.

        A function of its own, so that the graph and its buffers are freed before the update.
        """
        exchange = StepExchange(self.exchange, lambda: self.meters.part("exchange"))
        share = self.forward.share(batch, plan, leaves, exchange)
        self.exchanges = exchange.used
        exchange.attach(share).backward()  # type: ignore[no-untyped-call]
        return share.detach()

    def backward_on(self, batch: Batch, arrays: dict[str, Tensor], leaves: Leaves) -> Tensor:
        """Return the loss of a batch whose arrays are on the device already, (), and set the gradients of leaves."""
        self.forward.put(batch, arrays)
        return self._backward(batch, None, leaves)

    def save(self, folder: Path, meta: dict[str, Any]) -> None:
        """Write this worker's part of a checkpoint: flushed rows, optimizer state, parameters, and `meta`."""
        tables, scalars = {}, {}
        for name, table in self.tables.items():
            rows = {"rows": table.flush()}
            state = self.optimizers[name].state()
            rows |= {f"optim.{key}": value for key, value in state.items() if isinstance(value, Tensor)}
            scalars[name] = {key: value for key, value in state.items() if not isinstance(value, Tensor)}
            tables[name] = {key: value.cpu() for key, value in rows.items()}
        partitions = {name: table.partition for name, table in self.tables.items()}
        save_shard(folder, self.exchange.rank, partitions, tables, {**meta, "optim": scalars}, self.dense.state())

    def load(self, folder: Path) -> dict[str, Any]:
        """Restore rows, parameters and optimizer state from a checkpoint of any number of workers. Return `meta`."""
        tables, meta, shared = self.sharded.load_rows(folder)
        for name, optimizer in self.optimizers.items():
            state = {key.removeprefix("optim."): value for key, value in tables[name].items() if key != "rows"}
            optimizer.load(state | meta["optim"][name])
        self.dense.load(shared)
        return meta
