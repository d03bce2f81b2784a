"""Evaluation of untrained items: left out or ranked, counted as misses, the same on 1, 2 and 3 workers."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from distrec.core.errors import UserError
from distrec.data.dataset import Dataset, Part
from distrec.evaluation.config import EvalConfig
from distrec.evaluation.evaluator import evaluate_part
from distrec.evaluation.strata import ITEM_STRATA, USER_GROUPS, strata_by_degree
from distrec.models.base import Scorer
from distrec.sharding.collectives import Exchange
from distrec.sharding.partition import Partition
from distrec.testing.ranks import run_ranks
from tests.data.files import run, write

# Items 10 to 12 occur in the test part alone, user 7 too. Scores rise with the item.
TRAIN = [(user, item) for user in range(6) for item in range(10) if (user + item) % 3]
TEST = [(0, 10), (0, 3), (1, 11), (1, 2), (2, 1), (3, 12), (4, 2), (7, 10), (7, 5)]


class ByItem(Scorer):
    """Scores an item by its code, through representations or through a tile."""

    def __init__(self, dataset: Dataset, exchange: Exchange, by_scores: bool) -> None:
        partition = Partition(dataset.manifest.items, dataset.manifest.buckets, exchange.workers)
        self.rows, self.by_scores = partition.rows_of(exchange.rank), by_scores

    def representations(self, users):
        if self.by_scores:
            return None
        return torch.ones(len(users), 1), torch.from_numpy(self.rows).float()[:, None]

    def scores(self, users, items, out_UV):
        out_UV.copy_(torch.from_numpy(items).float().expand_as(out_UV))


def evaluate(path, by_scores, untrained_items):
    dataset, exchange = Dataset.open(path), Exchange(torch.device("cpu"))
    config = EvalConfig(k=(1, 3), untrained_items=untrained_items)
    return evaluate_part(ByItem(dataset, exchange, by_scores), dataset, Part.TEST, config, exchange)


def expected_recall(k, exclude):
    recalls = []
    for user in {user for user, _ in TEST} & {user for user, _ in TRAIN}:
        known = {item for other, item in TRAIN if other == user}
        candidates = [item for item in range(13) if item not in known and not (exclude and item >= 10)]
        held_out = {item for other, item in TEST if other == user}
        recalls.append(len(held_out & set(sorted(candidates)[-k:])) / len(held_out))
    return np.mean(recalls)


@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.parametrize("untrained_items", ["exclude", "include"])
def test_untrained_items_against_a_loop(tmp_path, workers, untrained_items):
    write(tmp_path / "d/train.csv", TRAIN)
    dataset = run(tmp_path, tmp_path / "d", test=write(tmp_path / "test.csv", TEST))
    for by_scores in (False, True):
        for found in run_ranks(workers, evaluate, dataset.path, by_scores, untrained_items):
            for k in (1, 3):
                assert found.means()[f"recall@{k}"] == pytest.approx(expected_recall(k, untrained_items == "exclude"))
            # Of users with training interactions; the two of user 7 are not evaluated.
            assert (found.users, found.left_out, found.relevant, found.untrained) == (5, 2, 7, 3)
            assert found.untrained_share == 3 / 7


def test_a_single_user(tmp_path):
    """Its held-out items are untrained, as the trained ones are those that it knows: nothing is left to rank."""
    dataset = run(tmp_path, Path(__file__).parents[1] / "data/cases/22_oneuser")
    for by_scores in (False, True):
        found = evaluate(dataset.path, by_scores, "exclude")
        assert (found.users, found.means()["recall@3"], found.means()["ndcg@3"], found.untrained_share) == (1, 0, 0, 1)
        assert evaluate(dataset.path, by_scores, "include").means()["recall@3"] == 1


def test_only_untrained_items_were_held_out(tmp_path):
    write(tmp_path / "d/train.csv", [("a", "tea"), ("b", "tea"), ("c", "tea")])
    write(tmp_path / "d/test.csv", [("a", "rum"), ("b", "rum")])
    lines = []
    dataset = run(tmp_path, tmp_path / "d", lines.append)
    for by_scores in (False, True):
        found = evaluate(dataset.path, by_scores, "exclude")
        assert (found.means()["recall@1"], found.means()["ndcg@3"], found.untrained_share) == (0, 0, 1)
        assert evaluate(dataset.path, by_scores, "include").means()["recall@1"] == 1
    assert lines[-1] == (
        "data: 1 of 2 items have no training interactions: rankings leave them out unless "
        "eval.untrained_items=include; held-out interactions with them (2 of 2 test) count as misses"
    )


class Random(Scorer):
    """Random rows, of which one user's is zero; the same on any number of workers."""

    similarity = "cosine"

    def __init__(self, dataset: Dataset, exchange: Exchange) -> None:
        draws, m = np.random.default_rng(0), dataset.manifest
        self.all = [draws.standard_normal((n, 4)) * draws.random((n, 1)) for n in (m.users, m.items)]
        self.all[0][3] = 0
        partitions = [Partition(n, m.buckets, exchange.workers) for n in (m.users, m.items)]
        self.own = [
            torch.from_numpy(rows[partition.rows_of(exchange.rank)]).float()
            for rows, partition in zip(self.all, partitions, strict=True)
        ]

    def representations(self, users):
        return self.own[0][torch.from_numpy(users)], self.own[1]


EVERYTHING = EvalConfig(k=(5, 20), metrics=("all",), strata=True, magnitudes=True, bootstrap=50)


def measure_everything(dataset):
    exchange = Exchange(torch.device("cpu"))
    found = evaluate_part(Random(dataset, exchange), dataset, Part.TEST, EVERYTHING, exchange, per_user=True)
    return found.means(), dict(found.diagnostics), found.per_user


def test_everything_is_the_same_on_any_number_of_workers(dataset):
    (one,) = run_ranks(1, measure_everything, dataset)
    for workers in (2, 3):
        for metrics, figures, per_user in run_ranks(workers, measure_everything, dataset):
            for name, value in metrics.items():
                exact = not name.startswith("norm_correlation")  # sums of real numbers in another order
                assert value == (one[0][name] if exact else pytest.approx(one[0][name], rel=1e-12)), name
            assert metrics.keys() == one[0].keys() and figures == pytest.approx(one[1], rel=1e-9)
            assert np.array_equal(per_user.user_U, one[2].user_U)
            assert all(np.array_equal(value, one[2].values[name]) for name, value in per_user.values.items())


def test_parts_sum_to_the_whole_and_groups_are_means_over_their_users(dataset):
    metrics, _, per_user = measure_everything(dataset)
    group_U = strata_by_degree(dataset.user_degrees())[per_user.user_U]
    for name in ("recall@5", "recall@20", "ndcg@5", "ndcg@20"):
        assert sum(metrics[f"{name}/{stratum}"] for stratum in ITEM_STRATA) == pytest.approx(metrics[name], abs=1e-8)
        assert metrics[f"{name}/low"] < metrics[name] == pytest.approx(per_user.values[name].mean(), abs=1e-9)
        assert metrics[f"{name}/high"] > metrics[name] == metrics[f"{name}/cosine"] != metrics[f"{name}/dot"]
        for g, group in enumerate(USER_GROUPS):
            assert metrics[f"{name}/{group}"] == pytest.approx(per_user.values[name][group_U == g].mean(), abs=1e-9)
            assert f"{name}/{group}" not in per_user.values
    by_dot = EvalConfig(k=20, similarity="dot", metrics=("mrr", "coverage"))
    scorer = Random(dataset, Exchange(torch.device("cpu")))
    found = evaluate_part(scorer, dataset, Part.TEST, by_dot, Exchange(torch.device("cpu"))).means()
    assert found["mrr@20"] == metrics["mrr@20/dot"] and found.keys() == {"mrr@20", "coverage@20"}


def test_correlations_by_numpy(dataset):
    metrics, _, _ = measure_everything(dataset)
    rows = dict(zip(("users", "items"), Random(dataset, Exchange(torch.device("cpu"))).all, strict=True))
    for side, degrees in (("users", dataset.user_degrees()), ("items", dataset.item_degrees())):
        kept = degrees > 0
        norms = np.linalg.norm(rows[side], axis=1)
        expected = np.corrcoef(np.log(degrees[kept] + 2), norms[kept])[0, 1]
        assert metrics[f"norm_correlation_{side}"] == pytest.approx(expected, abs=1e-6)


def test_file_of_users(dataset, tmp_path):
    _, _, per_user = measure_everything(dataset)
    table = pq.read_table(per_user.write(tmp_path / "new" / "users.parquet", dataset.user_ids()))
    ids = dataset.user_ids().to_pylist()
    assert table["user"].to_pylist() == [ids[user] for user in per_user.user_U]
    assert np.array_equal(table["ndcg@20"].to_numpy(), per_user.values["ndcg@20"])
    assert table.column_names == ["user", *per_user.values] and (np.diff(per_user.user_U) > 0).all()
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write .*file/users.parquet"):
        per_user.write(tmp_path / "file" / "users.parquet", dataset.user_ids())


def test_magnitudes_need_representations(dataset):
    exchange = Exchange(torch.device("cpu"))
    with pytest.raises(UserError, match="eval.magnitudes=true: this model's scores are not similarities; use false"):
        evaluate_part(ByItem(dataset, exchange, True), dataset, Part.TEST, EVERYTHING, exchange)


def test_no_user_to_evaluate(tmp_path):
    """The only user of the test part has no training items."""
    write(tmp_path / "d/train.csv", [("a", "tea"), ("b", "tea")])
    write(tmp_path / "d/test.csv", [("c", "tea")])
    dataset = run(tmp_path, tmp_path / "d")
    exchange = Exchange(torch.device("cpu"))
    found = evaluate_part(ByItem(dataset, exchange, False), dataset, Part.TEST, EVERYTHING, exchange, per_user=True)
    assert found.users == 0 and len(found.per_user.user_U) == 0
    with pytest.raises(UserError, match="nothing to evaluate"):
        found.means()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("auc", "unknown metric auc; known: all, recall, ndcg"),
        ("recall,auc", "unknown metric auc"),
        ("", "unknown met"),
    ],
)
def test_unknown_metrics(name, expected):
    with pytest.raises(ValueError, match=expected):
        EvalConfig(metrics=name)
