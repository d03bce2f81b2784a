"""Training steps that stay on the GPU: negatives are drawn there, and a step is replayed as a CUDA graph.

docs/gpu.md has figures, and what runs here. The host sends the pairs of many steps at once, and what else changes from
step to step: learning rates, bias corrections, the scale of decayed rows. It then launches one graph a step. A graph is
captured for each number of pairs that steps have, some twenty of one worker, so that nothing is padded and every loss
runs as elsewhere.

A step reads a table whole, with row numbers as indices, if it is small, has few rows beside those that the step uses,
or has rows that move outside the batch, which the step updates too. Of another table it reads the rows in the batch: it
sorts their numbers, in buffers of the size that they need if all are distinct. An entry -1 in a list of rows is none.

With several workers each gathers the items of all before a step and returns their gradients to the owners after it
(`gathered_items`): a step is then three graphs, with collectives between them.

C: pairs of all steps that are on the device; S: these steps; R: entries of a list of rows.
"""

import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from distrec.kernels.optimizer import COEFFICIENTS
from distrec.models.base import Emit
from distrec.optim.sparse import SparseOptimizer
from distrec.sampling.batch import Batch
from distrec.sampling.negatives import NegativeSampler
from distrec.sampling.source import BatchSource
from distrec.sharding.device_copy import to_device
from distrec.sharding.table import ITEMS, USERS
from distrec.tracking.meters import StepMeters
from distrec.training.config import Config
from distrec.training.cuda_graphs import CudaGraphs
from distrec.training.device_conditions import all_in_batch, reads_all, rows_read
from distrec.training.gathered_items import GatheredItems
from distrec.training.sharded_model import ShardedModel

_STEPS = 64  # sent at a time


class SteppedTrainer(Protocol):
    """What steps use of a `Trainer`."""

    config: Config
    device: torch.device
    sharded: ShardedModel
    optimizers: dict[str, SparseOptimizer]
    meters: StepMeters
    exchanges: bool
    """Whether the loss of the last step exchanged anything with other workers."""

    def backward_on(self, batch: Batch, arrays: dict[str, Tensor], leaves: dict[str, Tensor]) -> Tensor:
        """Return the loss of a batch with these arrays, and set the gradients of the leaves."""

    def gradients_of(self, leaves: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the gradients of the leaves."""

    def norm(self, grads: list[Tensor], dense: Tensor | None) -> Tensor:
        """Return the norm of the gradients of all workers."""

    def clip(self, grads: list[Tensor], norm: Tensor) -> None:
        """Scale gradients of this norm down to the largest allowed one."""


def sum_of_squares(grads: list[Tensor]) -> Tensor:
    """Return the sum of the squares of all values, () float64."""
    return torch.stack([grad.square().sum(dtype=torch.float64) for grad in grads]).sum()


class DeviceSteps:
    """The steps of a trainer.

    Args:
        trainer: its tables, optimizers and loss are used. It owns the steps, and is not kept alive by them: what a
            finished training holds on the GPU is freed at once.
        source: source of its batches, which are `pairs_only`.
    """

    def __init__(self, trainer: SteppedTrainer, source: BatchSource) -> None:
        from distrec.sampling.device_draws import DeviceDraws  # here, as Triton may be missing

        self._trainer: SteppedTrainer = weakref.proxy(trainer)
        self._source, self._config = source, trainer.config
        self._device, seed = trainer.device, trainer.config.run.seed
        read = replace(source)  # not kept: what it holds of the data would travel with `source` to its processes
        sampler, needs = read.sampler, source.needs
        sampling = source.config
        self._drawn = sampling.distribution == "in_batch" or sampling.negatives > 0
        known = sampling.shared and sampling.reject and self._drawn
        positives = read.interactions_csr if known or needs.extra_positives else None
        self._draws = DeviceDraws(sampler, positives, seed, self._device)
        self._excludes, self._log_total = sampler.excludes, float(np.log(max(1, sampler.total)))
        steps = min(_STEPS, source.steps)
        self._ahead = steps
        dtypes = (torch.int32, torch.int32, torch.int64)
        length = steps * source.most_pairs
        self._columns = tuple(self._zeros(length, dtype) for dtype in dtypes)
        self._start_S = self._zeros(steps, torch.int64)
        self._coefficients = {name: self._zeros((steps, COEFFICIENTS), torch.float64) for name in trainer.optimizers}
        self._loss_sum, self._norm = self._zeros((), torch.float64), self._zeros((), torch.float64)
        self._constants(sampler)
        sharded = trainer.sharded
        self._tables = {
            entity: sharded.names_of(entity) + sharded.names_of(entity, of_loss=True) for entity in (USERS, ITEMS)
        }
        self._gathered: GatheredItems | None = None
        if sharded.exchange.workers > 1:
            self._own_items = sharded.all_rows(ITEMS)
            widths = {name: sharded.specs[name].width for name in self._tables[ITEMS]}
            self._gathered = GatheredItems(sharded.exchange, sharded.partitions[ITEMS], widths)
        self._reads_all = {entity: reads_all(self._config, entity, sharded.exchange.workers) for entity in self._tables}
        self._all_in_batch = {entity: all_in_batch(self._config, entity) for entity in self._tables}
        self._graphs = CudaGraphs(self._device, captures="batch" not in self._config.loss.needs())

    @property
    def captures(self) -> bool:
        """Whether steps are captured."""
        return self._graphs.captures

    def _zeros(self, shape: int | tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return torch.zeros(shape, dtype=dtype, device=self._device)

    def _constants(self, sampler: NegativeSampler) -> None:
        """Copy what never changes to the device."""
        loss = self._config.loss
        sharded = self._trainer.sharded
        own_users = sharded.partitions[USERS].size(sharded.exchange.rank)
        self._count = {USERS: own_users, ITEMS: sharded.partitions[ITEMS].rows}
        self._all_rows: dict[str, Tensor] = {}
        self._saturated_U: Tensor | None = None
        if sampler.excludes and sampler.saturated_U.any():
            self._saturated_U = torch.from_numpy(sampler.saturated_U).to(self._device)
        if "log_q_BN" in loss.needs():
            self._log_masses_V, self._log_free_U = (
                torch.from_numpy(values).to(self._device) for values in (sampler.log_masses_V, sampler.log_free_U)
            )
        if "positive_degree_B" in loss.needs():
            degree_V = sharded.dataset.item_degrees().astype(np.float32)
            self._degree_V = torch.from_numpy(degree_V).to(self._device)

    def describe(self) -> str:
        """Return how steps run, for the log."""
        if self.captures:
            graphs = "one CUDA graph" if self._gathered is None else f"three CUDA graphs, {self._gathered.describe()}"
            return f"steps stay on the GPU, negatives are drawn there; each is {graphs}"
        return "negatives are drawn on the device, whose operations the host launches one by one"

    def train_epoch(self, epoch: int, first_step: int, batches: Iterator[Batch], emit: Emit) -> float:
        """Take the steps of an epoch; see `Learner.train_epoch`."""
        trainer, meters = self._trainer, self._trainer.meters
        self._loss_sum.zero_()
        step, steps = first_step, self._source.steps
        while step < steps:
            count = min(self._ahead, steps - step)
            for optimizer in trainer.optimizers.values():
                count = optimizer.steps_ahead(count)
            with meters.part("wait"):
                pairs = [next(batches) for _ in range(count)]
            assert (pairs[0].epoch, pairs[0].step) == (epoch, step), (pairs[0].epoch, pairs[0].step, epoch, step)
            with meters.part("look_up"):
                self._send(pairs)
            with meters.part("compute"):
                for batch in pairs:
                    step += 1
                    if batch.pairs:
                        self._take(len(batch.users_U), batch.pairs, step == steps)
                    else:
                        self._draws.state[0] += 1
                    emit(step, self._loss_sum)
        return self._loss_sum.item()

    @property
    def gradient_norm(self) -> float:
        """Norm of the gradient of the last step of an epoch, before clipping."""
        return self._norm.item()

    def _send(self, batches: list[Batch]) -> None:
        """Copy the pairs of some steps to the device, and the coefficients of the optimizers."""
        first, sizes = batches[0], [len(batch.users_U) for batch in batches]
        columns = [[getattr(batch, name) for batch in batches] for name in ("users_U", "items_U", "ordinal_B")]
        start_S = np.cumsum([0, *sizes[:-1]])
        # A step without pairs on any worker changes nothing: the optimizers do not count it.
        planned = np.flatnonzero([batch.pairs for batch in batches])
        coefficients = []
        for optimizer in self._trainer.optimizers.values():
            coefficients_SC = np.zeros((len(batches), COEFFICIENTS))
            coefficients_SC[planned] = optimizer.look_ahead(len(planned))
            coefficients.append(coefficients_SC)
        state = np.array([0, first.epoch, first.step])
        sent = to_device([state, start_S, *map(np.concatenate, columns), *coefficients], self._device)
        buffers = [self._draws.state, self._start_S, *self._columns, *self._coefficients.values()]
        for buffer, values in zip(buffers, sent, strict=True):
            buffer[: len(values)].copy_(values)

    def _take(self, pairs: int, total: int, ends: bool) -> None:
        """Take the present step.

        Args:
            pairs: pairs of this worker.
            total: pairs of all workers.
            ends: whether the step is the last of the epoch.
        """
        gathered, meters = self._gathered, self._trainer.meters
        if gathered is None:
            self._run(self._step, pairs, total, ends)
        else:
            self._run(self._put_items)
            with meters.part("exchange"):
                gathered.gather()
            self._run(self._own_part, pairs, total, ends)
            with meters.part("exchange"):
                gathered.return_gradients()
            self._run(self._update_items, ends)
            if ends:
                self._norm.copy_(self._trainer.sharded.exchange.all_add(self._norm.view(1))[0].sqrt())

    def _run(self, part: Callable[..., None], *size: int) -> None:
        """Run a step, or a part of one."""
        self._graphs.run(part, *size)
        if self._trainer.exchanges:
            # A collective must be captured by all workers or by none, and each captures when its sizes repeat.
            self._graphs.captures = False

    # Of what follows, no operation may wait for the device, nor read what changes on the host.

    def _step(self, pairs: int, total: int, ends: bool) -> None:
        """Take a step, as the only worker."""
        rows, grads = self._gradients(pairs, total)
        clip_norm = self._config.optim.clip_norm
        if ends or clip_norm is not None:
            norm = self._trainer.norm(list(grads.values()), None)
            self._norm.copy_(norm)
            if clip_norm is not None:
                self._trainer.clip(list(grads.values()), norm)
        self._update(USERS, rows[USERS], grads)
        self._update(ITEMS, rows[ITEMS], grads)
        self._index.add_(1)

    def _put_items(self) -> None:
        """Prepare this worker's items for the others."""
        assert self._gathered is not None
        self._gathered.put({name: self._read(name, self._own_items) for name in self._tables[ITEMS]})

    def _own_part(self, pairs: int, total: int, ends: bool) -> None:
        """Take this worker's part of a step: update its users, and prepare the gradients of items for their owners."""
        assert self._gathered is not None
        rows, grads = self._gradients(pairs, total)
        if ends:
            self._norm.copy_(sum_of_squares([grads[name] for name in self._tables[USERS]]))
        self._update(USERS, rows[USERS], grads)
        self._gathered.put_gradients(grads, rows[ITEMS] >= 0)

    def _update_items(self, ends: bool) -> None:
        """Update this worker's items by the gradients of all workers."""
        assert self._gathered is not None
        grads, used_V = self._gathered.sums()
        if ends:
            self._norm.add_(sum_of_squares(list(grads.values())))
        self._update(ITEMS, torch.where(used_V, self._own_items, -1), grads)
        self._index.add_(1)

    @property
    def _index(self) -> Tensor:
        """The present step among those that are on the device, (1,)."""
        return self._draws.state[:1]

    def _read(self, table: str, rows_R: Tensor) -> Tensor:
        """Return rows of this worker as they are before the present step, (R, D)."""
        return self._trainer.optimizers[table].read_ahead(rows_R, self._coefficients[table], self._index)

    def _update(self, entity: str, rows_R: Tensor, grads: dict[str, Tensor]) -> None:
        """Apply the gradients of an entity's tables, of rows of this worker."""
        for name in self._tables[entity]:
            self._trainer.optimizers[name].step_ahead(rows_R, grads[name], self._coefficients[name], self._index)

    def _gradients(self, pairs: int, total: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Add the loss of a step to that of the epoch. Return (rows of users and items, gradients by table).

        Args:
            pairs: pairs of this worker.
            total: pairs of all workers.
        """
        trainer, draws = self._trainer, self._draws
        user_B, item_B, ordinal_B = draws.pairs(self._columns, self._start_S, pairs)
        arrays, rows = self._arrays(user_B, item_B, ordinal_B)
        leaves = {name: self._read(name, rows[USERS]) for name in self._tables[USERS]}
        if self._gathered is None:
            leaves |= {name: self._read(name, rows[ITEMS]) for name in self._tables[ITEMS]}
        else:
            leaves |= self._gathered.rows()
        leaves = {name: leaf.requires_grad_() for name, leaf in leaves.items()}
        share = trainer.backward_on(Batch(-1, -1, total), arrays, leaves)
        self._loss_sum.add_(share, alpha=total)
        return rows, trainer.gradients_of(leaves)

    def _arrays(self, user_B: Tensor, item_B: Tensor, ordinal_B: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Draw. Return (the arrays of a batch, as `LossInputBuilder` reads them; the rows of users and items, (R,))."""
        sampling, needs = self._source.config, self._config.loss.needs()
        draws, m = self._draws, self._source.needs.extra_positives
        nothing = item_B.new_empty(0)
        if sampling.distribution == "in_batch":
            negatives = item_B
        elif sampling.shared:
            negatives = draws.shared_negatives(sampling.negatives)
        else:
            negatives = draws.negatives(user_B, ordinal_B, sampling.negatives)
        extra = draws.extra_positives(user_B, ordinal_B, m) if m else nothing
        users_R, (user_index_B,) = self._rows(USERS, [user_B])
        items_R, (positive_index_B, negative_index, extra_index) = self._rows(
            ITEMS, [item_B, negatives.view(-1), extra.view(-1)]
        )
        arrays = {
            "users_U": self._all(USERS) if len(users_R) == self._count[USERS] else users_R.clamp(min=0),
            "user_index_B": user_index_B,
            "user_id_B": user_B,
            "positive_id_B": item_B,
            "positive_index_B": positive_index_B,
            "negative_index": negative_index,
            "extra_index": extra_index,
            "masked": self._masked(user_B, negatives),
            "log_q": nothing,
        }
        if "log_q_BN" in needs:
            log_q = self._log_masses_V[negatives.long()]
            own = self._excludes and not sampling.shared
            total = self._log_free_U[user_B.long()][:, None] if own else self._log_total
            arrays["log_q"] = (log_q - total).float().view(-1)
        if "positive_degree_B" in needs:
            arrays["positive_degree_B"] = self._degree_V[item_B.long()]
        return arrays, {USERS: users_R, ITEMS: items_R}

    def _masked(self, user_B: Tensor, negatives: Tensor) -> Tensor:
        """Return which negatives are masked, (B, N) bool; (0,) if none can be."""
        sampling = self._source.config
        if not self._drawn:
            return user_B.new_empty(0, dtype=torch.bool)
        if sampling.reject and sampling.shared:
            return self._draws.known(user_B, negatives)
        if sampling.reject and self._saturated_U is not None:
            return self._saturated_U[user_B.long()][:, None].expand(negatives.shape)
        if sampling.distribution == "in_batch" and not sampling.reject:
            return torch.eye(len(user_B), dtype=torch.bool, device=self._device)
        return user_B.new_empty(0, dtype=torch.bool)

    def _all(self, entity: str) -> Tensor:
        """Return the numbers of all rows, (R,) int64. They are made by a step that is launched, before any capture."""
        if entity not in self._all_rows:
            self._all_rows[entity] = torch.arange(self._count[entity], device=self._device)
        return self._all_rows[entity]

    def _rows(self, entity: str, uses: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Return (rows that a step reads and updates, (R,) int64; for each use the index of its rows, int32)."""
        rows, count = self._count[entity], sum(len(use) for use in uses)
        if self._all_in_batch[entity]:
            return self._all(entity), uses
        if self._reads_all[entity] or rows_read(rows, count) == rows:
            return self._draws.touched(uses, rows), uses
        sorted_C, order_C = torch.cat(uses).sort()
        new_C = torch.ones_like(sorted_C, dtype=torch.bool)
        torch.ne(sorted_C[1:], sorted_C[:-1], out=new_C[1:])
        rank_C = new_C.cumsum(0) - 1
        rows_R = torch.full((count,), -1, dtype=torch.int64, device=self._device)
        rows_R.scatter_(0, rank_C, sorted_C.long())
        index_C = torch.empty_like(sorted_C).scatter_(0, order_C, rank_C.to(sorted_C.dtype))
        return rows_R, list(torch.split(index_C, [len(use) for use in uses]))


def pairs_only(source: BatchSource) -> BatchSource:
    """Return the source of the same steps whose batches hold no negatives: these are drawn on the device."""
    return replace(source, needs=replace(source.needs, pairs_only=True))
