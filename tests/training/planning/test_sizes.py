"""Expected sizes of a step, beside those of drawn batches."""

import numpy as np
import pytest
import torch

from distrec.core.errors import UserError
from distrec.sampling.source import BatchSource
from distrec.sharding.partition import Partition
from distrec.training.planning.sizes import Degrees, Sizes, step_sizes
from tests.conftest import changed

CASES = {
    "shared": {},
    "own": {"sampling": {"shared": False, "negatives": 3}},
    "popularity": {"sampling": {"distribution": "popularity", "beta": 0.5, "negatives": 80, "reject": False}},
    "mixture": {"sampling": {"distribution": "mixture", "uniform_share": 0.3, "negatives": 80, "reject": False}},
    "in_batch": {"sampling": {"distribution": "in_batch"}},
    "extra_positives": {"loss": {"name": "debiased_infonce"}, "sampling": {"negatives": 2, "reject": False}},
    "history": {"model": {"name": "simplex", "history": 4}},
    "no_negatives": {"loss": {"name": "directau"}},
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("workers", [1, 3])
def test_they_are_those_of_drawn_batches(small, dataset, name, workers):
    """To 4 %, as batches are drawn without replacement, and the smallest of them hold 85 pairs.

    Extra positives of the few users of such a batch repeat: 12 %.
    """
    rel = 0.12 if name == "extra_positives" else 0.04
    config = changed(small, **CASES[name])
    found = step_sizes(config, Sizes.of(dataset), workers)
    sampling, needs = config.effective_sampling, config.batch_needs
    group = (config.train.batch_size, 0, workers, needs)
    source = BatchSource(dataset, sampling, 0, *group)
    batches = source.batches(0, 0, source.steps)
    assert found.steps == source.steps and found.batch == pytest.approx(np.mean([b.pairs for b in batches]))
    pairs, users, items = (
        np.mean([len(getattr(b, field)) for b in batches]) for field in ("user_index_B", "users_U", "items_U")
    )
    assert (found.pairs, found.users, found.items) == pytest.approx((pairs, users, items), rel=rel)
    if workers == 1:
        assert found.items_read == pytest.approx(items, rel=rel)
    negatives = np.mean([len(b.negative_index) for b in batches])
    scores = (
        pairs * negatives if sampling.shared else pairs + negatives + np.mean([len(b.extra_index) for b in batches])
    )
    assert (found.shared_scores if sampling.shared else found.own_scores) == pytest.approx(scores, rel=0.04)


def test_rows_that_any_worker_requests(small, dataset):
    config, workers = changed(small, sampling={"negatives": 40}), 3
    sources = [BatchSource(dataset, config.sampling, 0, config.train.batch_size, w, workers) for w in range(workers)]
    batches = [source.batches(0, 0, source.steps) for source in sources]
    read = []
    for step in zip(*batches, strict=True):
        rows = [np.split(batch.items_U, np.cumsum(batch.item_splits_W)[:-1])[0] for batch in step]
        read.append(len(np.unique(np.concatenate(rows))))
    found = step_sizes(config, Sizes.of(dataset), workers)
    assert found.items_read == pytest.approx(np.mean(read), rel=0.05)


def test_all_items_are_read_for_a_softmax_and_all_rows_for_a_graph(small, dataset):
    sizes = Sizes.of(dataset)
    softmax = step_sizes(changed(small, loss={"name": "softmax"}), sizes, 2)
    own = Partition(sizes.items, sizes.buckets, 2).size(0)
    assert (softmax.items, softmax.items_read, softmax.shared_scores) == (0, own, softmax.batch * own)
    graph = step_sizes(changed(small, model={"name": "lightgcn"}), sizes, 1)
    assert (graph.users, graph.items_read, graph.edges) == (sizes.users, sizes.items, sizes.interactions)


@pytest.mark.parametrize("users, items, interactions", [(1, 1, 1), (3, 2000, 50), (10**8, 10**8, 10**9)])
def test_assumed_degrees_have_the_given_sums(users, items, interactions):
    sizes = Sizes.assumed(users, items, interactions, 64)
    for degrees, rows in ((sizes.user_degrees, users), (sizes.item_degrees, items)):
        assert degrees.rows_C.sum() == pytest.approx(rows)
        assert degrees.rows_C @ degrees.degree_C == pytest.approx(interactions)
        assert degrees.rows_C @ degrees.shares() == pytest.approx(1)
    assert torch.tensor(sizes.item_degrees.degree_C).diff().le(0).all()


def test_impossible_sizes_are_refused():
    for given in ((0, 10, 5), (10, 10, 0), (10, 10, 101)):
        with pytest.raises(UserError, match="no more interactions than pairs"):
            Sizes.assumed(*given, 64)
    with pytest.raises(UserError, match="65 workers are more than the data's 64 buckets"):
        Sizes.assumed(100, 100, 1000, 64).owned("items", 65)


def test_degrees_of_no_interactions():
    assert Degrees.of(np.zeros(5, np.int64)).shares().tolist() == [0.0]
