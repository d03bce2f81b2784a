"""Batches are a pure function of (seed, epoch, step): equal for any number of workers and any division into runs."""

import subprocess
import sys
from collections import Counter

import numpy as np
import pytest

from distrec.core.randomness import Purpose, uniforms
from distrec.data.dataset import Part
from distrec.data.prepare import prepare
from distrec.sampling.batch import BatchNeeds
from distrec.sampling.history import histories
from distrec.sampling.source import BatchSource
from distrec.sharding.partition import Partition
from tests.conftest import changed

EPOCH, FIRST, LAST = 1, 3, 9


def source(config, dataset, worker=0, workers=1, log_q=False, **needs):
    sampling, seed, size = config.sampling, config.run.seed, config.train.batch_size
    return BatchSource(dataset, sampling, seed, size, worker, workers, BatchNeeds(log_q, **needs))


def item_ids(items_U, item_splits_W, source):
    """Return the global ids of unique items, as in a batch."""
    m = source.dataset.manifest
    partition = Partition(m.items, m.buckets, source.workers)
    owner = np.repeat(np.arange(source.workers), item_splits_W)
    ids = np.array([partition.rows_of(w)[k] for w, k in zip(owner, items_U, strict=True)], np.int64)
    assert len(set(ids.tolist())) == len(ids)
    return ids


def decoded(batch, source):
    """Return (users, positives, negatives, masked positions) of one worker's batch as global ids."""
    m = source.dataset.manifest
    users = Partition(m.users, m.buckets, source.workers)
    ids = item_ids(batch.items_U, batch.item_splits_W, source)
    user = users.rows_of(source.worker)[batch.users_U][batch.user_index_B]
    return (
        user,
        ids[batch.positive_index_B],
        ids[batch.negative_index].reshape(-1, source.config.negatives),
        batch.masked,
    )


def whole_step(config, dataset, workers, step):
    """Return (user, positive, negatives) of each pair of a step of all workers, by bucket. Masked negatives are -1."""
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
@pytest.mark.parametrize("distribution", ["uniform", "popularity", "mixture"])
def test_bit_equal_for_any_number_of_workers(small, dataset, shared, reject, distribution):
    config = changed(small, sampling={"shared": shared, "reject": reject, "distribution": distribution})
    for step in (0, 5):
        one = whole_step(config, dataset, 1, step)
        for workers in (2, 3, 4, 12):
            assert whole_step(config, dataset, workers, step) == one


@pytest.mark.parametrize("shared", [True, False])
def test_a_run_of_steps_equals_single_steps(small, dataset, shared):
    config = changed(small, sampling={"shared": shared})
    together = source(config, dataset, 1, 3).batches(EPOCH, FIRST, LAST)
    for step, batch in zip(range(FIRST, LAST), together, strict=True):
        alone = source(config, dataset, 1, 3).batch(EPOCH, step)
        assert all(np.array_equal(getattr(batch, name), getattr(alone, name)) for name in vars(batch))


def test_an_epoch_contains_each_interaction_once_in_steps_of_equal_size(small, dataset):
    src = source(small, dataset)
    seen, sizes = Counter(), []
    for batch in src.batches(EPOCH, 0, src.steps):
        user, positive, _, _ = decoded(batch, src)
        seen.update(zip(user.tolist(), positive.tolist(), strict=True))
        sizes.append(len(user))
    users, items = dataset.interactions(Part.TRAIN, range(dataset.manifest.buckets))
    assert seen == Counter(zip(users.tolist(), items.tolist(), strict=True))
    assert sum(sizes) == dataset.manifest.train
    assert max(sizes) - min(sizes) <= dataset.manifest.buckets


@pytest.mark.parametrize(("users", "items_each", "batch_size"), [(64, 5, 16), (400, 5, 32), (64, 1, 1)])
def test_steps_have_equal_size_when_buckets_have(small, users, items_each, batch_size):
    """Buckets of equal size must not all contribute their pairs to the same steps: each has a phase."""
    steps = -(-users * items_each // batch_size)

    class EqualBuckets(BatchSource):
        _bucket_sizes_P = np.bincount(np.arange(users) % 64, minlength=64) * items_each
        steps = property(lambda self: -(-users * items_each // batch_size))

    even = EqualBuckets(None, small.sampling, 0, batch_size, 0, 1)
    sizes = np.diff(even._step_bounds(0, steps), axis=0).sum(1)
    assert sizes.sum() == users * items_each
    assert sizes.max() - sizes.min() <= 2


def test_epochs_and_seeds_differ(small, dataset):
    steps = [whole_step(changed(small, run={"seed": seed}), dataset, 1, 0) for seed in (0, 1)]
    assert steps[0] != steps[1]
    src = source(small, dataset)
    assert not np.array_equal(src.batch(0, 0).users_U, src.batch(1, 0).users_U)


@pytest.mark.parametrize("shared", [True, False])
def test_negatives_differ_between_steps_epochs_and_seeds(small, dataset, shared):
    config = changed(small, sampling={"shared": shared, "reject": False})
    drawn = [
        decoded(source(config, dataset).batch(*step), source(config, dataset))[2] for step in ((0, 0), (0, 1), (1, 0))
    ]
    other = source(changed(config, run={"seed": 1}), dataset)
    drawn.append(decoded(other.batch(0, 0), other)[2])
    heads = [tuple(negatives[0]) for negatives in drawn]
    assert len(set(heads)) == 4


def test_epochs_can_be_computed_in_any_order(small, dataset):
    src = source(small, dataset)
    for epoch in (5, 6, 3, 5, 0, 3):
        assert np.array_equal(src.batch(epoch, 0).users_U, source(small, dataset).batch(epoch, 0).users_U)


def test_a_user_who_knows_every_item_has_no_negatives(small, tmp_path):
    """User 0 knows every item that popularity can draw: all its negatives are masked, shared or not."""
    (tmp_path / "train.txt").write_text("0 0 1 2\n1 0 1\n2 2\n")
    (tmp_path / "test.txt").write_text("1 3\n")  # item 3 has no training interaction and is never drawn
    for shared in (True, False):
        config = changed(
            small,
            data={"source": str(tmp_path), "valid_fraction": 0},
            sampling={"shared": shared, "negatives": 5, "distribution": "popularity"},
        )
        src = source(config, prepare(config.data))
        for batch in src.batches(0, 0, src.steps):
            masked = np.zeros(len(batch.user_index_B) * 5, bool)
            masked[batch.masked] = True
            user, _, _, _ = decoded(batch, src)
            assert masked.reshape(-1, 5)[user == 0].all()
            if not shared:
                assert not masked.reshape(-1, 5)[user != 0].any()


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
    assert (hits > 0) == shared  # only shared negatives contain known positives, which are masked


def test_every_known_positive_is_masked_also_when_an_item_is_drawn_twice(small, dataset):
    src = source(changed(small, sampling={"negatives": 300}), dataset)  # of 200 items, so that items repeat
    indptr, indices = src.interactions_csr
    batch = src.batch(0, 0)
    user, _, negatives, masked = decoded(batch, src)
    expected = [
        pair * 300 + position
        for pair, u in enumerate(user)
        for position, item in enumerate(negatives[0])
        if item in indices[indptr[u] : indptr[u + 1]]
    ]
    assert masked.tolist() == expected


def test_log_q_of_negatives_of_pairs(small, dataset):
    src = source(changed(small, sampling={"shared": False, "distribution": "uniform"}), dataset, log_q=True)
    batch = src.batch(0, 0)
    user, _, negatives, _ = decoded(batch, src)
    free = dataset.manifest.items - dataset.user_degrees()[user]
    assert np.allclose(batch.log_q.reshape(negatives.shape), -np.log(free)[:, None], rtol=1e-6)


@pytest.mark.parametrize(
    ("module", "absent"),
    [("distrec.kernels.numba.draws", {"torch", "ray"}), ("distrec.sampling.stream", {"torch", "ray", "numba"})],
)
def test_processes_of_the_stream_start_without(module, absent):
    """Importing torch, Ray Data and numba takes 1.2, 0.8 and 0.3 s."""
    script = f"import sys, distrec.sampling.source, {module}; assert not {absent} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)


@pytest.mark.parametrize("reject", [True, False])
@pytest.mark.parametrize("workers", [1, 2, 3])
def test_in_batch_negatives_are_the_positives_of_the_other_pairs(small, dataset, workers, reject):
    config = changed(small, sampling={"distribution": "in_batch", "reject": reject})
    m, step = dataset.manifest, 4
    known = set(zip(*(ids.tolist() for ids in dataset.interactions(Part.TRAIN, range(m.buckets))), strict=True))
    found, expected = [], None
    for worker in range(workers):
        src = source(config, dataset, worker, workers, log_q=True)
        batch = src.batches(EPOCH, step - 1, step + 2)[1]
        owner = np.repeat(np.arange(workers), batch.item_splits_W)
        ids = np.array(
            [Partition(m.items, m.buckets, workers).rows_of(w)[k] for w, k in zip(owner, batch.items_U, strict=True)]
        )
        user = Partition(m.users, m.buckets, workers).rows_of(worker)[batch.users_U][batch.user_index_B]
        negatives = ids[batch.negative_index]
        masked = np.zeros((len(user), len(negatives)), bool)
        masked.flat[batch.masked] = True
        if reject:
            assert all(masked[b, n] == ((u, i) in known) for b, u in enumerate(user) for n, i in enumerate(negatives))
        else:
            assert (masked.sum(1) == 1).all()
            assert np.array_equal(negatives[masked.argmax(1)], ids[batch.positive_index_B])
            found += masked.argmax(1).tolist()
        expected = negatives.tolist() if expected is None else expected
        assert negatives.tolist() == expected and len(negatives) == batch.pairs
        degrees = dataset.item_degrees()
        assert np.allclose(batch.log_q, np.log(degrees[negatives] / degrees.sum()), atol=1e-6)
    if not reject:
        assert sorted(found) == list(range(len(expected))), "each negative is the positive of exactly one pair"


def needed_of_step(config, dataset, workers, step, m, h):
    """Return (user, positive, negatives, extra positives, history) of each pair of a step of all workers, by bucket."""
    pairs = []
    for worker in range(workers):
        src = source(config, dataset, worker, workers, extra_positives=m, history=h)
        batch = src.batches(EPOCH, step - 1, step + 1)[1]
        ids = item_ids(batch.items_U, batch.item_splits_W, src)
        used = [batch.positive_index_B, batch.negative_index, batch.extra_index, batch.history_index]
        assert set(np.concatenate(used).tolist()) - {-1} == set(range(len(ids)))
        user, positive, negative, _ = columns = decoded(batch, src)
        bare = source(config, dataset, worker, workers)  # further needs change nothing else
        without = decoded(bare.batch(EPOCH, step), bare)
        assert all(np.array_equal(a, b) for a, b in zip(columns, without, strict=True))
        history_UH = np.append(ids, -1)[batch.history_index].reshape(-1, h)
        further = ids[batch.extra_index].reshape(-1, m), history_UH[batch.user_index_B]
        pairs += zip(
            user.tolist(), positive.tolist(), negative.tolist(), *(column.tolist() for column in further), strict=True
        )
    return sorted(pairs, key=lambda pair: pair[0] % dataset.manifest.buckets)


def test_extra_positives_and_histories_against_brute_force_for_any_number_of_workers(small, dataset):
    """M = 3, so that pairs start anywhere in a block of four draws; H = 12, on both sides of the degrees."""
    config, step, m, h = changed(small, sampling={"shared": False}), 2, 3, 12
    user, item = dataset.interactions(Part.TRAIN, range(dataset.manifest.buckets))
    known = {u: np.sort(item[user == u]) for u in range(dataset.manifest.users)}
    indptr = np.cumsum([0] + [len(items) for items in known.values()])
    history = histories(config.run.seed, np.array(list(known)), indptr, np.concatenate(list(known.values())), h)
    one = needed_of_step(config, dataset, 1, step, m, h)
    _, ordinals, bounds = source(config, dataset)._pairs(EPOCH, step, step + 1)
    assert bounds.tolist() == [0, len(one)] and min(map(len, known.values())) < h < max(map(len, known.values()))
    for (u, positive, _, extra, past), first in zip(one, (ordinals * m).tolist(), strict=True):
        draws = uniforms(config.run.seed, Purpose.EXTRA_POSITIVES, EPOCH, first=first, count=m)
        assert positive in known[u] and extra == known[u][(draws * len(known[u])).astype(int)].tolist()
        assert past == history[u].tolist()
    assert all(needed_of_step(config, dataset, workers, step, m, h) == one for workers in (2, 3))


def test_users_with_one_and_without_positives(small, tmp_path):
    """The one positive is drawn M times and is the history; without positives the history is empty."""
    (tmp_path / "train.txt").write_text("0 0 1 2\n1 5\n2\n3 4\n")
    (tmp_path / "test.txt").write_text("2 3\n")
    dataset = prepare(changed(small, data={"source": str(tmp_path), "valid_fraction": 0}).data)
    src = source(small, dataset, 0, 2, extra_positives=4, history=2)  # users 0 and 2, of two workers
    other = source(small, dataset, 1, 2, extra_positives=4, history=2)  # users 1 and 3
    (batch,) = other.batches(0, 0, other.steps)
    user, positive, _, _ = decoded(batch, other)
    ids = item_ids(batch.items_U, batch.item_splits_W, other)
    assert sorted(zip(user.tolist(), positive.tolist(), strict=True)) == [(1, 5), (3, 4)]
    assert np.array_equal(ids[batch.extra_index].reshape(2, 4), np.tile(positive[:, None], 4))
    assert np.append(ids, -1)[batch.history_index].tolist() == [5, -1, 4, -1]
    items_U, splits_W, index = src.history_of(np.array([1, 0, 1]))  # user 2, 0, 2
    found = np.append(item_ids(items_U, splits_W, src), -1)[index].reshape(3, 2)
    assert found[[0, 2]].tolist() == [[-1, -1]] * 2 and set(found[1]) < {0, 1, 2} and len(set(found[1])) == 2
    items_U, splits_W, index = src.history_of(np.zeros(0, np.int32))
    assert len(items_U) == len(index) == 0 and splits_W.tolist() == [0, 0]


def test_lookup_orders_unique_items_by_owner(small, dataset):
    items = np.array([7, 3, 199, 7, 0, 3], np.int32)
    src = source(small, dataset, 1, 3)
    items_U, splits_W, index = src.lookup(items)
    assert len(items_U) == splits_W.sum() == 4 and splits_W.tolist() == [2, 2, 0]  # buckets 0, 3 and 7, 7 of 12
    assert item_ids(items_U, splits_W, src)[index].tolist() == items.tolist()
