"""One worker's part of the training: tables, step, evaluation, checkpoint. Knows nothing of Ray."""

from collections.abc import Iterable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from distrec.core.buffer_pool import empty
from distrec.data.dataset import Dataset, Part
from distrec.evaluation.metrics import RankingSums, ranking_sums
from distrec.evaluation.ranking import Pairs, rank
from distrec.losses import Scores, catalogue_losses, losses
from distrec.models import make_model
from distrec.models.scoring import pair_scores, shared_scores
from distrec.optim.sparse import SparseOptimizer
from distrec.sampling.batch import Batch
from distrec.sampling.source import BatchSource
from distrec.sharding.checkpoint import load_shard, save_shard
from distrec.sharding.collectives import Exchange, LookupPlan
from distrec.sharding.initialization import normal_rows
from distrec.sharding.partition import Partition
from distrec.sharding.table import Table
from distrec.sharding.transfer import to_device
from distrec.tracking.meters import StepMeters
from distrec.training.config import Config

USERS, ITEMS = "users", "items"
_READ = (
    "users_U",
    "user_index_B",
    "positive_index_B",
    "negative_index",
    "masked",
    "log_q",
)  # of a batch, where rows are


@dataclass(frozen=True)
class TableParts:
    """A shard and what updates it."""

    table: Table
    optimizer: SparseOptimizer


class Trainer:
    """The state of one worker. All workers of the group make the same calls in the same order.

    Args:
        config: the run.
        dataset: its prepared data.
        device: where the shards live.
    """

    def __init__(self, config: Config, dataset: Dataset, device: torch.device) -> None:
        self.config, self.dataset, self.device = config, dataset, device
        self.exchange = Exchange(device, config.train.send_bfloat16)
        self.asked: tuple[Batch, Future[LookupPlan]] | None = None
        self.placed: tuple[Batch, dict[str, torch.Tensor]] | None = None
        m, workers = dataset.manifest, self.exchange.workers
        self.partitions = {USERS: Partition(m.users, m.buckets, workers), ITEMS: Partition(m.items, m.buckets, workers)}
        self.source = BatchSource(
            dataset,
            config.drawn,
            config.run.seed,
            config.train.batch_size,
            self.exchange.rank,
            workers,
            config.loss.log_q,
        )
        self.model = make_model(config.model)
        self.sees_scores = config.loss.name in losses
        self.loss = (losses if self.sees_scores else catalogue_losses)[config.loss.name]
        self.parts = {name: self._make_table(name) for name in (USERS, ITEMS)}
        self.meters = StepMeters()

    def _make_table(self, name: str) -> TableParts:
        partition, rank_, c = self.partitions[name], self.exchange.rank, self.config
        rows_VD = normal_rows(c.run.seed, name, partition, rank_, c.model.dim, c.model.init_std)
        rows_VD = rows_VD.to(self.device, torch.bfloat16 if c.model.bfloat16 else torch.float32)
        table = Table(name, partition, rank_, rows_VD)
        return TableParts(table, SparseOptimizer(table, c.optim, c.train.epochs * self.source.steps))

    @property
    def idle_rows(self) -> str:
        """What happens to rows outside the batch, table by table, for people."""
        how = {name: part.optimizer.idle_rows for name, part in self.parts.items()}
        if len(set(how.values())) == 1:
            return f"rows outside the batch {how[ITEMS]}"
        return "; ".join(f"{name} outside the batch {what}" for name, what in how.items())

    def step(self, batch: Batch, following: Batch | None = None) -> torch.Tensor:
        """Takes one step. Returns the sum of the losses of this worker's pairs, a scalar that nobody has waited for.

        A step without pairs on any worker (tiny data) is no step: momentum and decay do not move either.

        Args:
            batch: this worker's part of the step.
            following: of the next one, if there is one: while this step is computed its rows are asked for, and it
                travels to the device.
        """
        if batch.pairs == 0:
            return torch.zeros((), device=self.device)
        loss_sum = self._sampled_step(batch, following) if self.sees_scores else self._catalogue_step(batch)
        if following is not None:
            with self.meters.part("look_up"):
                self._placed(following)  # a GPU is busy with this step meanwhile
        return loss_sum

    def _sampled_step(self, batch: Batch, following: Batch | None) -> torch.Tensor:
        users, items = self.parts[USERS], self.parts[ITEMS]
        with self.meters.part("look_up"):
            users_U = self._placed(batch)["users_U"].long()
            user_rows_UD = users.table.read(users_U).requires_grad_()
            lookup = self._route(batch)
            if following is not None and following.pairs:
                self.asked = following, self._plan_lookup(following)
            item_rows_RD = items.table.read(lookup.rows_R).requires_grad_()
        with self.meters.part("compute"):
            # An item's owner computes its representation, once for all workers that ask for it.
            own_RD = self.model.items(item_rows_RD)
        with self.meters.part("look_up"):
            items_UD = self.exchange.fetch(lookup, own_RD.detach()).requires_grad_()
        with self.meters.part("compute"):
            loss_sum = self._backward(batch, user_rows_UD, items_UD)
        with self.meters.part("update"):
            grad_RD = self.exchange.sum_gradients(lookup, items_UD.grad)
        with self.meters.part("compute"):
            if own_RD is not item_rows_RD:
                (grad_RD,) = torch.autograd.grad(own_RD, item_rows_RD, grad_RD)
        with self.meters.part("update"):
            users.optimizer.step(users_U, user_rows_UD.grad)
            items.optimizer.step(lookup.rows_R, grad_RD)
        return loss_sum

    def _backward(self, batch: Batch, user_rows_UD: torch.Tensor, items_UD: torch.Tensor) -> torch.Tensor:
        """The sum of the losses, (). Leaves the gradients of its arguments, and nothing of what was kept for them."""
        loss_sum = self.loss(self._scores(batch, self.model.users(user_rows_UD), items_UD), self.config.loss).sum()
        # The mean over the whole step's pairs: each worker adds its own, whatever their number.
        (loss_sum / batch.pairs).backward()
        return loss_sum.detach()

    def _plan_lookup(self, batch: Batch) -> Future[LookupPlan]:
        return self.exchange.plan_lookup(batch.items_U, batch.item_splits_W.tolist())

    def _route(self, batch: Batch) -> LookupPlan:
        """The answer to what was asked for this batch, now or during the step before."""
        (ahead, asked), self.asked = self.asked or (None, None), None
        return (asked if ahead is batch else self._plan_lookup(batch)).result()

    def _catalogue_step(self, batch: Batch) -> torch.Tensor:
        """The pairs go to every worker, which scores its own items for them: items stay where they are."""
        users, items = self.parts[USERS], self.parts[ITEMS]
        with self.meters.part("look_up"):
            placed, items_V = self._placed(batch), torch.arange(len(items.table.stored_VD), device=self.device)
            users_U = placed["users_U"].long()
            user_rows_UD = users.table.read(users_U).requires_grad_()
            item_rows_VD = items.table.read(items_V).requires_grad_()
        with self.meters.part("compute"):
            users_BD = self.model.users(user_rows_UD).index_select(0, placed["user_index_B"])
            items_VD = self.model.items(item_rows_VD)
            everyone_BD, own = self.exchange.gather(users_BD.detach())
            outcome = self.loss(
                everyone_BD, items_VD.detach(), self._own_positives(batch), self.config.loss, self.exchange
            )
            grads = outcome.users_grad_BD[own] / batch.pairs, outcome.items_grad_VD / batch.pairs
            torch.autograd.backward([users_BD, items_VD], grads)
        with self.meters.part("update"):
            users.optimizer.step(users_U, user_rows_UD.grad)
            items.optimizer.step(items_V, item_rows_VD.grad)
        return outcome.loss_B[own].sum()

    def _own_positives(self, batch: Batch) -> torch.Tensor:
        """Of the pairs of all workers: the local number of the positive, -1 where another worker owns it, (B,)."""
        owner_U = np.repeat(np.arange(self.exchange.workers), batch.item_splits_W)
        pair = np.stack([owner_U, batch.items_U])[:, batch.positive_index_B].T.astype(np.int64)
        owner_B, local_B = self.exchange.gather(to_device([pair], self.device)[0])[0].unbind(1)
        return torch.where(owner_B == self.exchange.rank, local_B, -1)

    def _scores(self, batch: Batch, users_UD: torch.Tensor, items_UD: torch.Tensor) -> Scores:
        placed, pairs = self._placed(batch), len(batch.user_index_B)
        user_index_B, positive_index_B, negative_index = (
            placed[name] for name in ("user_index_B", "positive_index_B", "negative_index")
        )
        n = len(negative_index) if self.config.sampling.shared else self.config.sampling.negatives
        if self.config.sampling.shared:
            positive_B, negative_BN = shared_scores(users_UD, items_UD, user_index_B, positive_index_B, negative_index)
        else:  # with the positive as one more column, as two gradients of all rows would take longer
            item_index = empty([pairs, 1 + n], negative_index)
            torch.cat([positive_index_B[:, None], negative_index.view(pairs, n)], 1, out=item_index)
            positive_B1, negative_BN = pair_scores(users_UD, items_UD, user_index_B, item_index).split([1, n], 1)
            positive_B = positive_B1[:, 0]
        if len(batch.masked):
            masked = torch.zeros(pairs * n, dtype=torch.bool, device=self.device)
            masked[placed["masked"]] = True
            negative_BN = negative_BN.masked_fill(masked.view(pairs, n), -torch.inf)
        if self.config.sampling.hardest:
            negative_BN = negative_BN.topk(min(n, self.config.sampling.hardest), dim=1, sorted=False).values
        log_q_BN = placed["log_q"].view(-1, n) if self.config.loss.log_q else None
        return Scores(positive_B, negative_BN, log_q_BN)

    def _placed(self, batch: Batch) -> dict[str, torch.Tensor]:
        """What a step reads of its batch, on the device since the step before, or from now on."""
        if self.placed is None or self.placed[0] is not batch:
            arrays = [getattr(batch, name) for name in _READ]
            self.placed = batch, dict(zip(_READ, to_device(arrays, self.device), strict=True))
        return self.placed[1]

    @torch.no_grad()
    def evaluate(self, part: Part) -> RankingSums:
        """Metrics on a part, over the users of all workers.

        Everything known before the part is left out of the rankings: the training items, and for the test part the
        validation items too. Users without held-out items have nothing to find, and users without training items no
        trained row: both are left out, and counted.
        """
        ks = self.config.eval.k
        held_out, known, users = self._held_out(part)
        users_UD = self.model.users(self.parts[USERS].table.read(*to_device([users], self.device)))
        items_VD = self.model.items(self.parts[ITEMS].table.read_all())
        ranked_UK = rank(
            users_UD, known, items_VD, self.partitions[ITEMS], self.exchange, min(max(ks), self.dataset.manifest.items)
        ).numpy()
        mine = ranking_sums(ranked_UK, held_out.indptr(len(users)), held_out.item, ks)
        everyone = self.exchange.all_sum([*mine.sums.values(), mine.users])
        ranked = int(everyone[-1])
        return RankingSums(dict(zip(mine.sums, everyone, strict=False)), ranked, self.dataset.manifest.users - ranked)

    def _held_out(self, part: Part) -> tuple[Pairs, Pairs, np.ndarray]:
        """(held-out items, known items, local numbers) of the users to evaluate; rows number these users."""
        partition, buckets = self.partitions[USERS], self.partitions[USERS].owned_buckets(self.exchange.rank)
        parts = {p: self.dataset.interactions(p, buckets) for p in (Part.TRAIN, Part.VALID, Part.TEST) if p <= part}
        local = {p: partition.local(user) for p, (user, _) in parts.items()}
        users = np.intersect1d(local[part], local[Part.TRAIN])
        held_out = _pairs_of(users, [local[part]], [parts[part][1]])
        before = [p for p in parts if p < part]
        return held_out, _pairs_of(users, [local[p] for p in before], [parts[p][1] for p in before]), users

    def save(self, folder: Path, meta: dict[str, Any]) -> None:
        """Writes this worker's part of a checkpoint: settled rows, optimizer state, and `meta`."""
        tables, scalars = {}, {}
        for name, part in self.parts.items():
            rows = {"rows": part.table.flush()}
            state = part.optimizer.state()
            rows |= {f"optim.{key}": value for key, value in state.items() if isinstance(value, torch.Tensor)}
            scalars[name] = {key: value for key, value in state.items() if not isinstance(value, torch.Tensor)}
            tables[name] = {key: value.cpu() for key, value in rows.items()}
        save_shard(folder, self.exchange.rank, self.partitions, tables, {**meta, "optim": scalars})

    def load(self, folder: Path) -> dict[str, Any]:
        """Goes on from a checkpoint, of any number of workers. Returns its `meta`."""
        tables, meta = load_shard(folder, self.exchange.rank, self.partitions)
        for name, part in self.parts.items():
            part.table.stored_VD.copy_(tables[name]["rows"])
            state = {key.removeprefix("optim."): value for key, value in tables[name].items() if key != "rows"}
            part.optimizer.load(state | meta["optim"][name])
        return meta


def _pairs_of(users: np.ndarray, local: Iterable[np.ndarray], items: Iterable[np.ndarray]) -> Pairs:
    """The pairs of some users (ascending local numbers), numbered by their place among them."""
    user, item = np.concatenate([*local, users[:0]]), np.concatenate([*items, np.zeros(0, np.int32)])
    kept = np.isin(user, users)
    row, item = np.searchsorted(users, user[kept]), item[kept].astype(np.int64)
    order = np.lexsort((item, row))
    return Pairs(row[order], item[order])
