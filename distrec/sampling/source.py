"""The batches of one worker, a pure function of (seed, epoch, step): independent of the process and of earlier calls.

Step s of S contains, of bucket p with n_p interactions and b_p interactions in the buckets before it, positions
floor((s n_p + b_p mod S) / S) .. floor(((s + 1) n_p + b_p mod S) / S) of a shuffle keyed by (seed, epoch, p), so that
each interaction occurs once an epoch. Without the phase b_p mod S, buckets of equal size would all contribute their
pairs to the same steps. An interaction's ordinal in the epoch, b_p plus its position, keys its negatives and its extra
positives.

P: buckets.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from distrec.core.randomness import Purpose, generator, uniforms
from distrec.data.dataset import Dataset, Part
from distrec.kernels.dedup import unique_ids, unique_of
from distrec.sampling.arrow import index_dtype
from distrec.sampling.batch import Batch, BatchNeeds
from distrec.sampling.config import SamplingConfig
from distrec.sampling.extra_positives import extra_positives
from distrec.sampling.history import histories
from distrec.sampling.negatives import NegativeSampler, item_masses
from distrec.sharding.partition import Partition

_PER_PAIR, _SHARED = 0, 1  # index of the stream of draws
_NONE = np.zeros(0, np.int64)


@dataclass(frozen=True)
class BatchSource:
    """Everything that determines the batches of one worker. Small and picklable: the data are read on first use.

    Args:
        dataset: prepared data set.
        config: negative sampling.
        seed: seed of the run.
        batch_size: pairs of a step over all workers.
        worker: rank of the worker.
        workers: number of workers.
        needs: what the batches hold beyond positives and negatives.
    """

    dataset: Dataset
    config: SamplingConfig
    seed: int
    batch_size: int
    worker: int
    workers: int
    needs: BatchNeeds = BatchNeeds()

    @property
    def steps(self) -> int:
        """Steps S of an epoch: the fewest with at most `batch_size` pairs a step on average."""
        return max(1, -(-self.dataset.manifest.train // self.batch_size))

    @property
    def most_pairs(self) -> int:
        """Most pairs of this worker in a step."""
        own = list(self._partitions[0].owned_buckets(self.worker))
        return int(np.diff(self._step_bounds(0, self.steps)[:, own], axis=0).sum(1).max())

    @property
    def bytes_per_step(self) -> int:
        """Estimated size of a batch, which determines the number of steps in a block of the stream."""
        pairs = self.batch_size // self.workers + 1
        if self.needs.pairs_only:
            return 16 * pairs
        n = self.batch_size if self.config.distribution == "in_batch" else self.config.negatives
        negatives = n if self.config.shared else pairs * n
        extra = pairs * self.needs.extra_positives
        history = min(pairs, self._partitions[0].size(self.worker)) * self.needs.history
        unique = min(pairs + negatives + extra + history, self.dataset.manifest.items)
        index_bytes = np.dtype(index_dtype(max(pairs, unique))).itemsize
        words = pairs + unique + negatives * self.needs.log_q + history + 2 * pairs * self.needs.ordinals
        return 4 * words + index_bytes * (2 * pairs + negatives + extra)

    def batch(self, epoch: int, step: int) -> Batch:
        """Return the batch of one step."""
        return self.batches(epoch, step, step + 1)[0]

    def batches(self, epoch: int, first: int, last: int) -> list[Batch]:
        """Return the batches of steps `first` .. `last` (exclusive) of an epoch. Cheaper than one call for each."""
        index, ordinal, ends = self._pairs(epoch, first, last)
        user, item, _ = self._interactions
        user, item = user[index], item[index]
        pairs = np.diff(self._step_bounds(first, last), axis=0).sum(1).tolist()  # of all workers
        if self.needs.pairs_only:
            columns = (np.split(array, ends[1:-1]) for array in (user, item, ordinal))
            return [
                Batch(epoch, first + k, pairs[k], users_U=user_B, items_U=item_B, ordinal_B=ordinal_B)
                for k, (user_B, item_B, ordinal_B) in enumerate(zip(*columns, strict=True))
            ]
        shared: Sequence[np.ndarray] | np.ndarray | None = None
        shared_ordinals: list[np.ndarray] | None = None
        if self.config.distribution == "in_batch":
            shared, shared_ordinals = self._step_positives(epoch, first, last)
        elif self.config.shared:
            shared = self._shared_negatives(epoch, first, last)
        batches = []
        for k in range(last - first):
            ordinal_B, user_B, item_B = (array[ends[k] : ends[k + 1]] for array in (ordinal, user, item))
            own_B = None if shared_ordinals is None else np.searchsorted(shared_ordinals[k], ordinal_B)
            # Drawn step by step, so that they are still in cache when they are de-duplicated.
            negatives = self._pair_negatives(epoch, user_B, ordinal_B) if shared is None else shared[k]
            batches.append(self._batch(epoch, first + k, pairs[k], (ordinal_B, user_B, item_B), negatives, own_B))
        return batches

    @cached_property
    def interactions_csr(self) -> tuple[np.ndarray, np.ndarray]:
        """(indptr, indices) in CSR form: the training items of each local user, ascending."""
        user, item, _ = self._interactions
        order = np.lexsort((item, user))
        counts = np.bincount(user, minlength=self._partitions[0].size(self.worker))
        return np.concatenate([[0], np.cumsum(counts)]), item[order]

    def lookup(self, items: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return (items_U, item_splits_W, index) of a flat array of items, as in `Batch`: item k is row `index[k]`."""
        items_U, splits_W, (index,) = self._unique_items([items])
        return items_U, splits_W, index

    def history_of(self, users_U: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return (items_U, item_splits_W, history_index) of the histories of local users, as in `Batch`."""
        history_UH = self._histories[users_U]
        items_U, splits_W, index = self.lookup(history_UH[history_UH >= 0])
        return items_U, splits_W, _padded(index, history_UH)

    @cached_property
    def _bucket_sizes_P(self) -> np.ndarray:
        degrees = self.dataset.user_degrees()
        buckets = self.dataset.manifest.buckets
        return np.bincount(np.arange(len(degrees)) % buckets, weights=degrees, minlength=buckets).astype(np.int64)

    @cached_property
    def _before_P(self) -> np.ndarray:
        """Interactions in the buckets before each one."""
        return np.asarray(np.cumsum(self._bucket_sizes_P) - self._bucket_sizes_P)

    @cached_property
    def _partitions(self) -> tuple[Partition, Partition]:
        m = self.dataset.manifest
        return Partition(m.users, m.buckets, self.workers), Partition(m.items, m.buckets, self.workers)

    @cached_property
    def _interactions(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """This worker's training interactions by bucket: (local user, item, start of each bucket)."""
        buckets = self._partitions[0].owned_buckets(self.worker)
        user, item = self.dataset.interactions(Part.TRAIN, buckets)
        starts = np.concatenate([[0], np.cumsum(self._bucket_sizes_P[list(buckets)])])
        return self._partitions[0].local(user), item, starts

    @cached_property
    def sampler(self) -> NegativeSampler:
        m = self.dataset.manifest
        masses = item_masses(self.config, self.dataset.item_degrees(), m.users)
        return NegativeSampler(masses, self.interactions_csr if self.config.reject else None)

    @cached_property
    def _orders(self) -> dict[int, np.ndarray]:
        return {}

    def _order(self, epoch: int) -> np.ndarray:
        """Return the concatenated shuffles of this worker's buckets in an epoch, indices into `_interactions`.

        The shuffles of two epochs are cached.
        """
        if epoch not in self._orders:
            _, _, starts = self._interactions
            buckets = self._partitions[0].owned_buckets(self.worker)
            self._orders[epoch] = np.concatenate(
                [
                    starts[k] + generator(self.seed, Purpose.SHUFFLE, epoch, p).permutation(self._bucket_sizes_P[p])
                    for k, p in enumerate(buckets)
                ]
            )
            if len(self._orders) > 2:
                del self._orders[next(iter(self._orders))]  # the oldest
        return self._orders[epoch]

    def _step_bounds(self, first: int, last: int) -> np.ndarray:
        """Return the start of steps `first` .. `last` (inclusive) in each bucket's shuffle, (steps + 1, P)."""
        phases_P = self._before_P % self.steps
        return np.asarray((np.arange(first, last + 1)[:, None] * self._bucket_sizes_P + phases_P) // self.steps)

    def _pairs(self, epoch: int, first: int, last: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return (index into `_interactions`, ordinal, bounds of the steps) of this worker's pairs of some steps.

        Pairs are ordered by step, then by bucket.
        """
        own = np.array(self._partitions[0].owned_buckets(self.worker))
        bounds = self._step_bounds(first, last)[:, own]
        # One run of a bucket's shuffle for each step and bucket: its length, and its start among these pairs.
        lengths = np.diff(bounds, axis=0).ravel()
        ends = np.cumsum(lengths)
        starts, pair = ends - lengths, np.arange(ends[-1])
        index = pair + np.repeat((self._interactions[2][:-1] + bounds[:-1]).ravel() - starts, lengths)
        ordinal = pair + np.repeat((self._before_P[own] + bounds[:-1]).ravel() - starts, lengths)
        return self._order(epoch)[index], ordinal, np.concatenate([[0], ends[len(own) - 1 :: len(own)]])

    def _step_positives(self, epoch: int, first: int, last: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Return (items, ordinals, ascending) of the pairs of all workers, by step."""
        source = self if self.workers == 1 else self._one_worker
        index, ordinal, ends = source._pairs(epoch, first, last)
        return np.split(source._interactions[1][index], ends[1:-1]), np.split(ordinal, ends[1:-1])

    @cached_property
    def _one_worker(self) -> "BatchSource":
        """The source of the same steps for a single worker."""
        return replace(self, worker=0, workers=1)

    def _shared_negatives(self, epoch: int, first: int, last: int) -> np.ndarray:
        """Return shared negatives, (steps, N), the same at every worker."""
        n = self.config.negatives
        drawn = uniforms(self.seed, Purpose.NEGATIVES, epoch, _SHARED, first=first * n, count=(last - first) * n)
        return self.sampler.draw(drawn, None).reshape(last - first, n)

    def _pair_negatives(self, epoch: int, user_B: np.ndarray, ordinal_B: np.ndarray) -> np.ndarray:
        """Return the negatives of each pair, (B, N): draws ordinal * N .. ordinal * N + N - 1 of the epoch."""
        from distrec.kernels.numba.draws import Stream  # here: importing numba takes 0.3 s

        stream = Stream(*map(np.uint64, (self.seed & (2**64 - 1), Purpose.NEGATIVES, epoch, _PER_PAIR)))
        return self.sampler.draw_for_pairs(stream, ordinal_B, user_B, self.config.negatives)

    def _batch(
        self,
        epoch: int,
        step: int,
        pairs: int,
        columns: tuple[np.ndarray, ...],
        negatives: np.ndarray,
        own_B: np.ndarray | None,
    ) -> Batch:
        """Return a batch with de-duplicated rows.

        Args:
            pairs: pairs of all workers.
            columns: (ordinal_B, user_B, item_B).
            negatives: items (B, N), or (N,) where they are shared.
            own_B: with in-batch negatives, index of each pair's positive among them.
        """
        ordinal_B, user_B, item_B = columns
        users_U, user_index_B = unique_ids(user_B, self._partitions[0].size(self.worker))
        history_UH = self._histories[users_U]
        extra, m = _NONE, self.needs.extra_positives
        if m:
            extra = extra_positives(self.seed, epoch, ordinal_B, user_B, self.interactions_csr, m)
        uses = [item_B, negatives.ravel(), extra.ravel(), history_UH[history_UH >= 0]]
        items_U, splits_W, (positive_index_B, negative_index, extra_index, history_index) = self._unique_items(uses)
        masked, log_q = _NONE, np.zeros(0, np.float32)
        if self.config.reject:
            masked = self._known_positives(user_B, negatives)
        elif own_B is not None:
            masked = np.arange(len(user_B)) * len(negatives) + own_B
        if self.needs.log_q:
            log_q = self.sampler.log_q(negatives, None if self.config.shared else user_B[:, None]).ravel()
        return Batch(
            epoch=epoch,
            step=step,
            pairs=pairs,
            users_U=users_U,
            user_index_B=user_index_B,
            items_U=items_U,
            item_splits_W=splits_W,
            positive_index_B=positive_index_B,
            negative_index=negative_index,
            masked=masked,
            log_q=log_q,
            extra_index=extra_index,
            history_index=_padded(history_index, history_UH),
            ordinal_B=ordinal_B if self.needs.ordinals else _NONE,
        )

    @cached_property
    def _histories(self) -> np.ndarray:
        """Histories of the local users, items (V, H)."""
        user_ids, h = self._partitions[0].rows_of(self.worker), self.needs.history
        if h == 0:
            return np.zeros((len(user_ids), 0), np.int32)
        return histories(self.seed, user_ids, *self.interactions_csr, h)

    def _unique_items(self, uses: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
        """Return (items_U, item_splits_W) of all items of several arrays, and the index of each array into items_U."""
        slot_V, starts = self._owner_order
        slots_U, index = unique_of(uses, len(slot_V), slot_V)
        splits_W = np.diff(np.searchsorted(slots_U, starts))
        return slots_U - np.repeat(starts[:-1], splits_W).astype(np.int32), splits_W, index

    @cached_property
    def _owner_order(self) -> tuple[np.ndarray, np.ndarray]:
        """(Slot of each item in the order (owner, local index), first slot of each owner).

        De-duplicated by slot, unique items come in the order in which they are requested of their owners.
        """
        partition = self._partitions[1]
        starts = np.cumsum([0] + [partition.size(worker) for worker in range(partition.workers)])
        ids_V = np.arange(partition.rows)
        return (starts[partition.owner(ids_V)] + partition.local(ids_V)).astype(np.int32), starts

    def _known_positives(self, user_B: np.ndarray, negatives: np.ndarray) -> np.ndarray:
        """Return flat positions in (B, N) of negatives that are known to the pair's user, ascending, int64.

        A pair's own negatives are none, except for users who know every item that can be drawn.
        """
        if self.config.shared:
            return self._known_positives_shared(user_B, negatives)
        pairs, n = np.flatnonzero(self.sampler.saturated_U[user_B]), negatives.shape[1]
        return np.asarray((pairs[:, None] * n + np.arange(n)).ravel())

    def _known_positives_shared(self, user_B: np.ndarray, negatives_N: np.ndarray) -> np.ndarray:
        """Iterate over the positives of the batch's users, which are far fewer than the B * N scores."""
        indptr, indices = self.interactions_csr
        counts = indptr[user_B + 1] - indptr[user_B]
        ends = np.cumsum(counts)
        entry = np.arange(ends[-1] if len(ends) else 0) + np.repeat(indptr[user_B] - (ends - counts), counts)
        drawn_V = np.zeros(self._partitions[1].rows, bool)
        drawn_V[negatives_N] = True
        hit = np.flatnonzero(drawn_V[indices[entry]])
        pair, item = np.searchsorted(ends, hit, side="right"), indices[entry[hit]]
        order = np.argsort(negatives_N, kind="stable")
        low = np.searchsorted(negatives_N[order], item, side="left")
        times = np.searchsorted(negatives_N[order], item, side="right") - low  # an item may be drawn more than once
        repeat = np.arange(times.sum()) - np.repeat(np.cumsum(times) - times, times)
        return np.sort(np.repeat(pair, times) * len(negatives_N) + order[np.repeat(low, times) + repeat])


def _padded(index: np.ndarray, history_UH: np.ndarray) -> np.ndarray:
    """Return the flat index of histories, U * H int32, from the index of those of their items that are not padding."""
    padded = np.full(history_UH.size, -1, np.int32)
    padded[history_UH.ravel() >= 0] = index
    return padded
