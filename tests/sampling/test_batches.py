"""The batches are a pure function of (seed, epoch, step): the same for any number of workers and any cut into runs."""

from collections import Counter

import numpy as np
import pytest

from distrec.data.dataset import Part
from distrec.plan import Plan
from distrec.sampling.batches import BatchSource, unique_ids
from tests.conftest import changed

EPOCH, FIRST, LAST = 1, 3, 9


def source(config, dataset, worker=0, workers=1, log_q=False):
    return BatchSource(dataset, config.sampling, config.run.seed, config.train.batch_size, worker, workers, log_q)


def decoded(batch, source):
    """(users, positives, negatives, masked pairs) of one worker's batch as global ids."""
    m = source.dataset.manifest
    users, items = (Plan(rows, m.buckets, source.workers) for rows in (m.users, m.items))
    owner = np.repeat(np.arange(source.workers), batch.item_splits_W)
    ids = np.array([items.rows_of(w)[k] for w, k in zip(owner, batch.items_U, strict=True)])
    assert len(set(ids.tolist())) == len(ids)
    user = users.rows_of(source.worker)[batch.users_U][batch.user_at_B]
    return user, ids[batch.positive_at_B], ids[batch.negative_at].reshape(-1, source.config.negatives), batch.masked


def whole_step(config, dataset, workers, step):
    """The step over all workers, in the order of the buckets: (user, positive, negatives) of each pair."""
    pairs, sizes = [], set()
    for worker in range(workers):
        src = source(config, dataset, worker, workers)
        batch = src.batch(EPOCH, step)
        user, positive, negative, masked = decoded(batch, src)
        sizes.add(batch.pairs)
        if config.sampling.shared:
            mask = np.zeros(len(user) * config.sampling.negatives, bool)
            mask[masked] = True
            negative = np.where(mask.reshape(len(user), -1), -1, negative[0])
        pairs += zip(user.tolist(), positive.tolist(), negative.tolist(), strict=True)
    assert sizes == {len(pairs)}  # every worker knows the size of the whole step
    return sorted(pairs, key=lambda pair: pair[0] % dataset.manifest.buckets)


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("reject", [True, False])
@pytest.mark.parametrize("distribution", ["uniform", "popularity"])
def test_bit_equal_for_any_number_of_workers(small, dataset, shared, reject, distribution):
    config = changed(small, sampling={"shared": shared, "reject": reject, "distribution": distribution})
    for step in (0, 5):
        one = whole_step(config, dataset, 1, step)
        for workers in (2, 3, 4, 12):
            assert whole_step(config, dataset, workers, step) == one


@pytest.mark.parametrize("shared", [True, False])
def test_a_run_of_steps_equals_its_steps_one_by_one(small, dataset, shared):
    config = changed(small, sampling={"shared": shared})
    together = source(config, dataset, 1, 3).batches(EPOCH, FIRST, LAST)
    for step, batch in zip(range(FIRST, LAST), together, strict=True):
        alone = source(config, dataset, 1, 3).batch(EPOCH, step)
        assert all(np.array_equal(getattr(batch, name), getattr(alone, name)) for name in vars(batch))


def test_an_epoch_uses_every_interaction_once_in_steps_of_even_size(small, dataset):
    src = source(small, dataset)
    seen, sizes = Counter(), []
    for batch in src.batches(EPOCH, 0, src.steps):
        user, positive, _, _ = decoded(batch, src)
        seen.update(zip(user.tolist(), positive.tolist(), strict=True))
        sizes.append(len(user))
    users, items = dataset.interactions(Part.TRAIN, range(dataset.manifest.buckets))
    assert seen == Counter(zip(users.tolist(), items.tolist(), strict=True))
    assert max(sizes) - min(sizes) <= dataset.manifest.buckets
    assert max(sizes) <= small.train.batch_size + dataset.manifest.buckets


def test_epochs_and_seeds_differ(small, dataset):
    steps = [whole_step(changed(small, run={"seed": seed}), dataset, 1, 0) for seed in (0, 1)]
    assert steps[0] != steps[1]
    src = source(small, dataset)
    assert not np.array_equal(src.batch(0, 0).users_U, src.batch(1, 0).users_U)


@pytest.mark.parametrize("shared", [True, False])
def test_known_positives_are_rejected(small, dataset, shared):
    config = changed(small, sampling={"shared": shared, "negatives": 60})
    known = {u: set() for u in range(dataset.manifest.users)}
    for u, i in zip(*dataset.interactions(Part.TRAIN, range(12)), strict=True):
        known[int(u)].add(int(i))
    hits = 0
    for step in range(4):
        for user, _, negatives in whole_step(config, dataset, 2, step):
            assert not known[user] & set(negatives)
            hits += negatives.count(-1)
    assert (hits > 0) == shared  # shared negatives are masked, so some must have been known positives


def test_the_mask_is_every_known_pair_also_when_an_item_is_drawn_twice(small, dataset):
    src = source(changed(small, sampling={"negatives": 300}), dataset)  # of 200 items: repeats are certain
    offsets, items = src._positives
    batch = src.batch(0, 0)
    user, _, negatives, masked = decoded(batch, src)
    expected = [
        pair * 300 + place
        for pair, u in enumerate(user)
        for place, item in enumerate(negatives[0])
        if item in items[offsets[u] : offsets[u + 1]]
    ]
    assert masked.tolist() == expected


def test_log_q_of_pairs(small, dataset):
    src = source(changed(small, sampling={"shared": False, "distribution": "uniform"}), dataset, log_q=True)
    batch = src.batch(0, 0)
    user, _, negatives, _ = decoded(batch, src)
    free = dataset.manifest.items - dataset.user_degrees()[user]
    assert np.allclose(batch.log_q.reshape(negatives.shape), -np.log(free)[:, None], rtol=1e-6)


@pytest.mark.parametrize("size", [10, 100_000])
def test_unique_ids_is_numpy_unique_by_either_way(size):
    ids = np.random.default_rng(0).integers(0, size, 500).astype(np.int32)
    unique, place = unique_ids(ids, size)
    assert np.array_equal(unique, np.unique(ids)) and np.array_equal(unique[place], ids)
    assert [len(a) for a in unique_ids(ids[:0], size)] == [0, 0]
