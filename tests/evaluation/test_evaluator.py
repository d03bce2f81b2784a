"""Evaluation of untrained items: left out or ranked, counted as misses, the same on 1, 2 and 3 workers."""

from pathlib import Path

import numpy as np
import pytest
import torch

from distrec.data.dataset import Dataset, Part
from distrec.evaluation.config import EvalConfig
from distrec.evaluation.evaluator import evaluate_part
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
