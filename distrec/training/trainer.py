"""The training step of one worker, and its checkpoints. Independent of Ray."""

from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from distrec.core.buffer_pool import empty
from distrec.data.dataset import Dataset, Part
from distrec.evaluation.metrics import RankingSums
from distrec.losses import Scores, catalogue_losses, losses
from distrec.models.scoring import pair_scores, shared_scores
from distrec.optim.sparse import SparseOptimizer
from distrec.sampling.batch import Batch
from distrec.sampling.source import BatchSource
from distrec.sharding.checkpoint import save_shard
from distrec.sharding.collectives import LookupPlan
from distrec.sharding.device_copy import to_device
from distrec.tracking.meters import StepMeters
from distrec.training.config import Config
from distrec.training.sharded_model import ITEMS, USERS, ShardedModel

# Arrays of a batch that the step reads on the device.
_DEVICE_ARRAYS = ("users_U", "user_index_B", "positive_index_B", "negative_index", "masked", "log_q")


class Trainer:
    """The training state of one worker. All workers of the group make the same calls in the same order.

    Args:
        config: configuration of the run.
        dataset: the prepared data.
        device: where the shards live.
    """

    def __init__(self, config: Config, dataset: Dataset, device: torch.device) -> None:
        self.config, self.device = config, device
        self.sharded = ShardedModel(config, dataset, device)
        self.model, self.tables, self.exchange = self.sharded.model, self.sharded.tables, self.sharded.exchange
        sampling, seed, group = config.effective_sampling, config.run.seed, (self.exchange.rank, self.exchange.workers)
        self.source = BatchSource(dataset, sampling, seed, config.train.batch_size, *group, config.loss.log_q)
        steps = config.train.epochs * self.source.steps
        self.optimizers = {name: SparseOptimizer(table, config.optim, steps) for name, table in self.tables.items()}
        self.meters = StepMeters()
        self._prefetched_lookup: tuple[Batch, Future[LookupPlan]] | None = None
        self._prefetched_arrays: tuple[Batch, dict[str, Tensor]] | None = None

    @property
    def sees_scores(self) -> bool:
        """Whether the loss is one on scores of pairs; else it is one over the whole catalogue."""
        return self.config.loss.name in losses

    @property
    def idle_rows(self) -> str:
        """How rows outside the batch are updated, by table, for a log."""
        how = {name: optimizer.idle_rows for name, optimizer in self.optimizers.items()}
        if len(set(how.values())) == 1:
            return f"rows outside the batch {how[ITEMS]}"
        return "; ".join(f"{name} outside the batch {text}" for name, text in how.items())

    def step(self, batch: Batch, following: Batch | None = None) -> Tensor:
        """Take one step. Return the sum of the losses of this worker's pairs: 0-dim tensor, not synchronised.

        A step without pairs on any worker (tiny data) changes nothing, neither momentum nor decay.

        Args:
            batch: this worker's part of the step.
            following: this worker's part of the next step, if there is one. Its lookup plan is made, and its arrays
                are copied to the device, while this step is computed.
        """
        if batch.pairs == 0:
            return torch.zeros((), device=self.device)
        loss_sum = self._sampled_step(batch, following) if self.sees_scores else self._catalogue_step(batch)
        if following is not None:
            with self.meters.part("look_up"):
                self._device_arrays(following)  # a GPU computes this step meanwhile
        return loss_sum

    def _sampled_step(self, batch: Batch, following: Batch | None) -> Tensor:
        users, items = self.tables[USERS], self.tables[ITEMS]
        with self.meters.part("look_up"):
            users_U = self._device_arrays(batch)["users_U"].long()
            user_rows_UD = users.read(users_U).requires_grad_()
            lookup = self._lookup_plan(batch)
            if following is not None and following.pairs:
                self._prefetched_lookup = following, self._plan_lookup(following)
            item_rows_RD = items.read(lookup.rows_R).requires_grad_()
        with self.meters.part("compute"):
            # The owner of an item computes its representation once for all workers that request it.
            own_RD = self.model.items(item_rows_RD)
        with self.meters.part("look_up"):
            items_UD = self.exchange.fetch(lookup, own_RD.detach()).requires_grad_()
        with self.meters.part("compute"):
            loss_sum = self._backward(batch, user_rows_UD, items_UD)
        with self.meters.part("update"):
            grad_RD = self.exchange.sum_gradients(lookup, _grad(items_UD))
        with self.meters.part("compute"):
            if own_RD is not item_rows_RD:
                (grad_RD,) = torch.autograd.grad(own_RD, item_rows_RD, grad_RD)
        with self.meters.part("update"):
            self.optimizers[USERS].step(users_U, _grad(user_rows_UD))
            self.optimizers[ITEMS].step(lookup.rows_R, grad_RD)
        return loss_sum

    def _backward(self, batch: Batch, user_rows_UD: Tensor, items_UD: Tensor) -> Tensor:
        """Return the sum of the losses, (), and set the gradients of both arguments.

        A function of its own, so that the graph and its buffers are freed before the update.
        """
        loss = losses[self.config.loss.name]
        loss_sum = loss(self._scores(batch, self.model.users(user_rows_UD), items_UD), self.config.loss).sum()
        # The mean over the pairs of the global batch: each worker contributes the sum over its own.
        (loss_sum / batch.pairs).backward()  # type: ignore[no-untyped-call]
        return loss_sum.detach()

    def _plan_lookup(self, batch: Batch) -> Future[LookupPlan]:
        return self.exchange.plan_lookup(batch.items_U, batch.item_splits_W.tolist())

    def _lookup_plan(self, batch: Batch) -> LookupPlan:
        """Return the plan prefetched during the previous step, or made now."""
        prefetched, self._prefetched_lookup = self._prefetched_lookup, None
        if prefetched is not None and prefetched[0] is batch:
            return prefetched[1].result()
        return self._plan_lookup(batch).result()

    def _catalogue_step(self, batch: Batch) -> Tensor:
        """Take a step of a loss over all items: users go to every worker, which scores the items it owns."""
        users, items = self.tables[USERS], self.tables[ITEMS]
        with self.meters.part("look_up"):
            arrays, items_V = self._device_arrays(batch), torch.arange(len(items.stored_VD), device=self.device)
            users_U = arrays["users_U"].long()
            user_rows_UD = users.read(users_U).requires_grad_()
            item_rows_VD = items.read(items_V).requires_grad_()
        with self.meters.part("compute"):
            users_BD = self.model.users(user_rows_UD).index_select(0, arrays["user_index_B"])
            items_VD = self.model.items(item_rows_VD)
            all_users_BD, own = self.exchange.gather(users_BD.detach())
            loss = catalogue_losses[self.config.loss.name]
            outcome = loss(all_users_BD, items_VD.detach(), self._own_positives(batch), self.config.loss, self.exchange)
            grads = outcome.users_grad_BD[own] / batch.pairs, outcome.items_grad_VD / batch.pairs
            torch.autograd.backward([users_BD, items_VD], grads)
        with self.meters.part("update"):
            self.optimizers[USERS].step(users_U, _grad(user_rows_UD))
            self.optimizers[ITEMS].step(items_V, _grad(item_rows_VD))
        return outcome.loss_B[own].sum()

    def _own_positives(self, batch: Batch) -> Tensor:
        """Return the local id of the positive of each pair of all workers, -1 if another worker owns it, (B,)."""
        owner_U = np.repeat(np.arange(self.exchange.workers), batch.item_splits_W)
        pair = np.stack([owner_U, batch.items_U])[:, batch.positive_index_B].T.astype(np.int64)
        owner_B, local_B = self.exchange.gather(to_device([pair], self.device)[0])[0].unbind(1)
        return torch.where(owner_B == self.exchange.rank, local_B, -1)

    def _scores(self, batch: Batch, users_UD: Tensor, items_UD: Tensor) -> Scores:
        arrays, pairs, sampling = self._device_arrays(batch), len(batch.user_index_B), self.config.sampling
        user_index_B, positive_index_B = arrays["user_index_B"], arrays["positive_index_B"]
        negative_index = arrays["negative_index"]
        n = len(negative_index) if sampling.shared else sampling.negatives
        if sampling.shared:
            positive_B, negative_BN = shared_scores(users_UD, items_UD, user_index_B, positive_index_B, negative_index)
        else:  # the positive is one more column: two calls would each compute a gradient of all rows
            item_index = empty([pairs, 1 + n], negative_index)
            torch.cat([positive_index_B[:, None], negative_index.view(pairs, n)], 1, out=item_index)
            scores = pair_scores(users_UD, items_UD, user_index_B, item_index)
            positive_B1, negative_BN = torch.split(scores, [1, n], 1)
            positive_B = positive_B1[:, 0]
        if len(batch.masked):
            masked = torch.zeros(pairs * n, dtype=torch.bool, device=self.device)
            masked[arrays["masked"]] = True
            negative_BN = negative_BN.masked_fill(masked.view(pairs, n), -torch.inf)
        if sampling.hardest:
            negative_BN = negative_BN.topk(min(n, sampling.hardest), dim=1, sorted=False).values
        log_q_BN = arrays["log_q"].view(-1, n) if self.config.loss.log_q else None
        return Scores(positive_B, negative_BN, log_q_BN)

    def _device_arrays(self, batch: Batch) -> dict[str, Tensor]:
        """Return the arrays of a batch that a step reads, on the device: prefetched, or copied now."""
        if self._prefetched_arrays is None or self._prefetched_arrays[0] is not batch:
            arrays = [getattr(batch, name) for name in _DEVICE_ARRAYS]
            self._prefetched_arrays = batch, dict(zip(_DEVICE_ARRAYS, to_device(arrays, self.device), strict=True))
        return self._prefetched_arrays[1]

    def evaluate(self, part: Part) -> RankingSums:
        """Return the metrics on a part, over the users of all workers; see `ShardedModel.evaluate`."""
        return self.sharded.evaluate(part)

    def save(self, folder: Path, meta: dict[str, Any]) -> None:
        """Write this worker's part of a checkpoint: flushed rows, optimizer state, and `meta`."""
        tables, scalars = {}, {}
        for name, table in self.tables.items():
            rows = {"rows": table.flush()}
            state = self.optimizers[name].state()
            rows |= {f"optim.{key}": value for key, value in state.items() if isinstance(value, Tensor)}
            scalars[name] = {key: value for key, value in state.items() if not isinstance(value, Tensor)}
            tables[name] = {key: value.cpu() for key, value in rows.items()}
        save_shard(folder, self.exchange.rank, self.sharded.partitions, tables, {**meta, "optim": scalars})

    def load(self, folder: Path) -> dict[str, Any]:
        """Restore rows and optimizer state from a checkpoint of any number of workers. Return its `meta`."""
        tables, meta = self.sharded.load_rows(folder)
        for name, optimizer in self.optimizers.items():
            state = {key.removeprefix("optim."): value for key, value in tables[name].items() if key != "rows"}
            optimizer.load(state | meta["optim"][name])
        return meta


def _grad(leaf: Tensor) -> Tensor:
    assert leaf.grad is not None
    return leaf.grad
