"""The batches of one worker, as a pure function of (seed, epoch, step): it does not matter who asks, or how often.

Step s of S takes from bucket p of n_p interactions, of which b_p lie in the buckets before it, the positions
floor((s n_p + b_p mod S) / S) .. floor(((s + 1) n_p + b_p mod S) / S) of a shuffle keyed by (seed, epoch, p): each
interaction once an epoch. Without the phase b_p mod S, buckets of one size would all give their pairs in the same
steps. An interaction's number in the epoch, b_p plus its position, keys its negatives.
"""

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from distrec.core.randomness import Purpose, generator, uniforms
from distrec.data.dataset import Dataset, Part
from distrec.kernels.dedup import unique_ids, unique_of
from distrec.sampling.batch import Batch, index_dtype
from distrec.sampling.config import SamplingConfig
from distrec.sampling.negatives import NegativeSampler, item_masses
from distrec.sharding.partition import Partition

_OF_PAIRS, _SHARED = 0, 1  # the two ways of drawing never share a stream


def steps_per_epoch(interactions: int, batch_size: int) -> int:
    """Steps S of an epoch: as few as keep a step at `batch_size` pairs on average."""
    return max(1, -(-interactions // batch_size))


@dataclass(frozen=True)
class BatchSource:
    """Everything that determines the batches of one worker. Small and picklable: the data are read on first use.

    Args:
        dataset: the prepared data set.
        config: how negatives are drawn.
        seed: the run's seed.
        batch_size: pairs of a step over all workers.
        worker, workers: whose batches.
        with_log_q: whether the batches carry log q.
    """

    dataset: Dataset
    config: SamplingConfig
    seed: int
    batch_size: int
    worker: int
    workers: int
    with_log_q: bool = False

    @property
    def steps(self) -> int:
        """Steps of an epoch."""
        return steps_per_epoch(self.dataset.manifest.train, self.batch_size)

    @property
    def bytes_per_step(self) -> int:
        """Rough size of a batch, for cutting the stream into blocks."""
        pairs = self.batch_size // self.workers + 1
        n = self.batch_size if self.config.distribution == "in_batch" else self.config.negatives
        negatives = n if self.config.shared else pairs * n
        unique = min(pairs + negatives, self.dataset.manifest.items)
        at = np.dtype(index_dtype(max(pairs, unique))).itemsize
        return 4 * (pairs + unique + negatives * self.with_log_q) + at * (2 * pairs + negatives)

    def batch(self, epoch: int, step: int) -> Batch:
        """The batch of one step."""
        return self.batches(epoch, step, step + 1)[0]

    def batches(self, epoch: int, first: int, last: int) -> list[Batch]:
        """The batches of steps `first` .. `last` (exclusive) of an epoch. Many at once cost less than one at a time."""
        at, number, ends = self._pairs(epoch, first, last)
        user, item, _ = self._interactions
        user, item = user[at], item[at]
        drawn = numbers = None
        if self.config.distribution == "in_batch":
            drawn, numbers = self._positives_of(epoch, first, last)
        elif self.config.shared:
            drawn = self._shared_negatives(epoch, first, last)
        made = []
        for k in range(last - first):
            pairs = slice(ends[k], ends[k + 1])
            own = None if numbers is None else np.searchsorted(numbers[k], number[pairs])
            # Pairs' own are drawn step by step: they are still in cache then when they are de-duplicated.
            negatives = self._pair_negatives(epoch, user[pairs], number[pairs]) if drawn is None else drawn[k]
            made.append(self._batch(epoch, first + k, user[pairs], item[pairs], negatives, own))
        return made

    @cached_property
    def _bucket_sizes_P(self) -> np.ndarray:
        degrees = self.dataset.user_degrees()
        buckets = self.dataset.manifest.buckets
        return np.bincount(np.arange(len(degrees)) % buckets, weights=degrees, minlength=buckets).astype(np.int64)

    @cached_property
    def _before_P(self) -> np.ndarray:
        """Interactions in the buckets before each one."""
        return np.cumsum(self._bucket_sizes_P) - self._bucket_sizes_P

    @cached_property
    def _partitions(self) -> tuple[Partition, Partition]:
        m = self.dataset.manifest
        return Partition(m.users, m.buckets, self.workers), Partition(m.items, m.buckets, self.workers)

    @cached_property
    def _interactions(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """This worker's training interactions: local user and item by bucket, and where each bucket starts."""
        buckets = self._partitions[0].owned_buckets(self.worker)
        user, item = self.dataset.interactions(Part.TRAIN, buckets)
        starts = np.concatenate([[0], np.cumsum(self._bucket_sizes_P[list(buckets)])])
        return self._partitions[0].local(user), item, starts

    @cached_property
    def _sampler(self) -> NegativeSampler:
        m = self.dataset.manifest
        masses = item_masses(self.config, self.dataset.item_degrees(), m.users)
        return NegativeSampler(masses, self._positives if self.config.reject else None)

    @cached_property
    def _positives(self) -> tuple[np.ndarray, np.ndarray]:
        """(offsets, items): the training items of each local user, ascending."""
        user, item, _ = self._interactions
        order = np.lexsort((item, user))
        counts = np.bincount(user, minlength=self._partitions[0].size(self.worker))
        return np.concatenate([[0], np.cumsum(counts)]), item[order]

    @cached_property
    def _orders(self) -> dict[int, np.ndarray]:
        return {}

    def _order(self, epoch: int) -> np.ndarray:
        """The shuffles of this worker's buckets in an epoch, one after another: places in `_interactions`. Two epochs
        are kept.
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
                del self._orders[next(iter(self._orders))]  # the one made first
        return self._orders[epoch]

    def _cuts(self, first: int, last: int) -> np.ndarray:
        """Where steps `first` .. `last` begin, and `last - 1` ends, in each bucket's shuffle, (steps + 1, P)."""
        phases_P = self._before_P % self.steps
        return (np.arange(first, last + 1)[:, None] * self._bucket_sizes_P + phases_P) // self.steps

    def _pairs(self, epoch: int, first: int, last: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of the pairs of some steps, step after step and in each bucket after bucket: place in `_interactions`, number
        in the epoch, and where each step begins and the last one ends."""
        own = np.array(self._partitions[0].owned_buckets(self.worker))
        cuts = self._cuts(first, last)[:, own]
        # A run of a bucket's shuffle for each step and bucket: how long, and where it begins among all pairs asked for.
        lengths = np.diff(cuts, axis=0).ravel()
        ends = np.cumsum(lengths)
        begins, pair = ends - lengths, np.arange(ends[-1])
        at = pair + np.repeat((self._interactions[2][:-1] + cuts[:-1]).ravel() - begins, lengths)
        number = pair + np.repeat((self._before_P[own] + cuts[:-1]).ravel() - begins, lengths)
        return self._order(epoch)[at], number, np.concatenate([[0], ends[len(own) - 1 :: len(own)]])

    def _positives_of(self, epoch: int, first: int, last: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """(items, numbers in the epoch, ascending) of all workers' pairs, step by step."""
        everyone = self._everyone
        at, number, ends = everyone._pairs(epoch, first, last)
        return np.split(everyone._interactions[1][at], ends[1:-1]), np.split(number, ends[1:-1])

    @cached_property
    def _everyone(self) -> "BatchSource":
        """The same batches as one worker would see them."""
        return self if self.workers == 1 else replace(self, worker=0, workers=1)

    def _shared_negatives(self, epoch: int, first: int, last: int) -> np.ndarray:
        """Negatives of whole steps, (steps, N): every worker draws the same."""
        n = self.config.negatives
        drawn = uniforms(self.seed, Purpose.NEGATIVES, epoch, _SHARED, first=first * n, count=(last - first) * n)
        return self._sampler.draw(drawn, None).reshape(last - first, n)

    def _pair_negatives(self, epoch: int, user_B: np.ndarray, number_B: np.ndarray) -> np.ndarray:
        """Negatives of each pair, (pairs, N). Draws number * N .. number * N + N - 1 of the epoch belong to a pair."""
        from distrec.kernels.numba.draws import Stream  # here, as importing numba takes a good part of a second

        names = (self.seed & (2**64 - 1), Purpose.NEGATIVES, epoch, _OF_PAIRS)
        stream = Stream(*(np.uint64(name) for name in names))
        return self._sampler.draw_for_pairs(stream, number_B, user_B, self.config.negatives)

    def _batch(
        self,
        epoch: int,
        step: int,
        user_B: np.ndarray,
        item_B: np.ndarray,
        negatives: np.ndarray,
        own_B: np.ndarray | None,
    ) -> Batch:
        """De-duplicates and addresses the rows of one step. `negatives` is (B, N), or (N,) when shared.

        `own_B`: where each pair's positive stands among shared negatives that are positives.
        """
        none = np.zeros(0, np.int64)
        users_U, user_index = unique_ids(user_B, self._partitions[0].size(self.worker))
        slot_V, starts = self._slots
        slots_U, (positive_index, negative_index) = unique_of([item_B, negatives.ravel()], len(slot_V), slot_V)
        splits_W = np.diff(np.searchsorted(slots_U, starts))
        if self.config.reject:
            masked = self._known(user_B, negatives)
        else:
            masked = none if own_B is None else np.arange(len(user_B)) * len(negatives) + own_B
        log_q = none
        if self.with_log_q:
            log_q = self._sampler.log_q(negatives, None if self.config.shared else user_B[:, None]).ravel()
        return Batch(
            epoch=epoch,
            step=step,
            pairs=int(np.diff(self._cuts(step, step + 1), axis=0).sum()),
            users_U=users_U,
            user_index_B=user_index,
            items_U=slots_U - np.repeat(starts[:-1], splits_W).astype(np.int32),
            item_splits_W=splits_W,
            positive_index_B=positive_index,
            negative_index=negative_index,
            masked=masked,
            log_q=log_q,
        )

    @cached_property
    def _slots(self) -> tuple[np.ndarray, np.ndarray]:
        """(where each item stands when all lie owner after owner, where each owner's items begin): unique items are
        wanted in this order, and come in it when they are marked by their slots."""
        partition = self._partitions[1]
        starts = np.cumsum([0] + [partition.size(worker) for worker in range(partition.workers)])
        ids_V = np.arange(partition.rows)
        return (starts[partition.owner(ids_V)] + partition.local(ids_V)).astype(np.int32), starts

    def _known(self, user_B: np.ndarray, negatives: np.ndarray) -> np.ndarray:
        """Flat places in (B, N) of negatives that are training positives of the pair's user, ascending, int64.

        A pair's own negatives are none of them, but for users to whom every item that can be drawn is known.
        """
        if self.config.shared:
            return self._known_shared(user_B, negatives)
        pairs, n = np.flatnonzero(self._sampler.saturated[user_B]), negatives.shape[1]
        return (pairs[:, None] * n + np.arange(n)).ravel()

    def _known_shared(self, user_B: np.ndarray, negatives_N: np.ndarray) -> np.ndarray:
        """Walks the positives of the batch's users, of which there are far fewer than the B * N scores."""
        indptr, items = self._positives
        counts = indptr[user_B + 1] - indptr[user_B]
        ends = np.cumsum(counts)
        walk = np.arange(ends[-1] if len(ends) else 0) + np.repeat(indptr[user_B] - (ends - counts), counts)
        drawn_V = np.zeros(self._partitions[1].rows, bool)
        drawn_V[negatives_N] = True
        hit = np.flatnonzero(drawn_V[items[walk]])
        pair, item = np.searchsorted(ends, hit, side="right"), items[walk[hit]]
        order = np.argsort(negatives_N, kind="stable")
        low = np.searchsorted(negatives_N[order], item, side="left")
        times = np.searchsorted(negatives_N[order], item, side="right") - low  # an item may be drawn more than once
        within = np.arange(times.sum()) - np.repeat(np.cumsum(times) - times, times)
        return np.sort(np.repeat(pair, times) * len(negatives_N) + order[np.repeat(low, times) + within])
