"""The synthetic data set: exact counts, power laws, and a ground truth that predicts held-out items."""

import numpy as np
import pytest

from distrec.data.config import PlantedConfig
from distrec.data.dataset import Part
from distrec.data.planted import make
from tests.data.files import run

CONFIG = PlantedConfig(users=600, items=400, interactions=30_000)


@pytest.fixture(scope="module")
def data():
    return make(CONFIG)


@pytest.mark.parametrize(
    "users, items, interactions, activity",
    [
        (1, 2, 2, 0.5),
        (7, 2, 14, 1.0),  # every user has every item
        (5, 9, 10, 3.0),  # every user has the minimum
        (5, 9, 44, 0.0),  # all but one pair
        (100, 50, 777, 0.0),
        (100, 50, 777, 2.0),
        (300, 1000, 20_000, 0.7),
    ],
)
def test_exact_counts(users, items, interactions, activity):
    config = PlantedConfig(users=users, items=items, interactions=interactions, activity_exponent=activity)
    planted = make(config)
    assert len(planted.users) == len(planted.items) == interactions
    counts = np.bincount(planted.users, minlength=users)
    assert len(counts) == users and counts.min() >= 2 and counts.max() <= items
    assert len(np.unique(planted.users * items + planted.items)) == interactions
    assert planted.items.min() >= 0 and planted.items.max() < items
    if activity == 0:
        assert counts.max() - counts.min() <= 1


def test_activity_is_a_power_law(data):
    counts = np.sort(np.bincount(data.users))[::-1]
    assert counts.max() <= 200  # half the catalogue
    free = np.arange(1, 601)[(counts < 200) & (counts > 2)]
    slope = np.polyfit(np.log(free), np.log(counts[free - 1]), 1)[0]
    assert abs(slope - -0.5) < 0.02


def test_popularity_is_a_power_law_without_taste():
    config = CONFIG.model_copy(update={"taste_strength": 0.0, "interactions": 6000, "activity_exponent": 0.0})
    planted = make(config)
    degrees = np.bincount(planted.items, minlength=400)
    expected = np.exp(planted.log_popularity)
    top = np.argsort(-expected)[:100]
    # Drawing 10 items a user without replacement flattens the head a little: inclusion is near 1 - exp(-c p).
    slope = np.polyfit(planted.log_popularity[top], np.log(degrees[top]), 1)[0]
    assert 0.75 < slope < 1.05
    assert np.corrcoef(degrees, expected)[0, 1] > 0.97
    flat = np.bincount(make(config.model_copy(update={"popularity_exponent": 0.0})).items, minlength=400)
    assert flat.max() < 15 + 6 * np.sqrt(15)  # Poisson with mean 15: no head


def test_popular_items_dominate(data):
    degrees = np.sort(np.bincount(data.items, minlength=400))
    shares = degrees / degrees.sum()
    gini = 1 - 2 * (np.cumsum(shares) - shares / 2).mean()
    assert 0.3 < gini < 0.7
    assert shares[-40:].sum() > 0.25  # a tenth of the items, more than a quarter of the interactions


def test_data_are_a_pure_function_of_the_configuration(data):
    again = make(CONFIG)
    np.testing.assert_array_equal(again.users, data.users)
    np.testing.assert_array_equal(again.items, data.items)
    np.testing.assert_array_equal(again.user_taste, data.user_taste)
    other = make(CONFIG.model_copy(update={"seed": 1}))
    pairs = [set(zip(planted.users.tolist(), planted.items.tolist(), strict=True)) for planted in (data, other)]
    assert len(pairs[0] & pairs[1]) < 0.4 * len(pairs[0])


def test_golden_draw(data):
    """The draws of a seed are fixed: a change here changes every result on planted data."""
    assert data.items[data.users == 0][:8].tolist() == [22, 30, 42, 53, 71, 93, 103, 109]


def test_taste_has_unit_variance(data):
    products = data.user_taste @ data.item_taste.T
    assert abs(products.std() - 1) < 0.1
    scores = data.scores(np.array([3, 5]))
    np.testing.assert_allclose(scores, data.log_popularity + 2.0 * products[[3, 5]], rtol=1e-12, atol=1e-12)


def test_ground_truth_ranks_held_out_items_far_better_than_popularity(tmp_path, data):
    dataset = run(tmp_path, "planted", planted=CONFIG, valid_fraction=0.1)
    m = dataset.manifest
    assert (m.name, m.users, m.train + m.valid + m.test) == ("planted", 600, 30_000)
    assert abs(m.test - 6000) < 4 * np.sqrt(600 / 4)  # 0.2 of each user, rounded at random with variance at most 1/4
    assert abs(m.valid - 2400) < 4 * np.sqrt(600 / 4)
    raw_items = dataset.item_ids().to_numpy()
    assert dataset.user_ids().to_pylist() == list(range(600))
    seen = np.zeros((600, 400), bool)
    wanted = np.zeros((600, 400), bool)
    for part, mask in ((Part.TRAIN, seen), (Part.VALID, seen), (Part.TEST, wanted)):
        users, items = dataset.interactions(part, range(m.buckets))
        mask[users, raw_items[items]] = True
    popularity = np.broadcast_to(seen.sum(axis=0), (600, 400))

    def recall(scores):
        top = np.argsort(-np.where(seen, -np.inf, scores), axis=1)[:, :20]
        return (np.take_along_axis(wanted, top, axis=1).sum(axis=1) / wanted.sum(axis=1)).mean()

    recall_of_truth, recall_of_popularity, recall_of_chance = (
        recall(s) for s in (data.scores(np.arange(600)), popularity, -popularity)
    )
    assert recall_of_truth > 2 * recall_of_popularity > 4 * recall_of_chance
    assert recall_of_truth > 0.4


def test_planted_test_fraction(tmp_path):
    tiny = PlantedConfig(users=10, items=50, interactions=200, activity_exponent=0)
    assert run(tmp_path, "planted", planted=tiny).manifest.test == 40  # 20 each, a fifth
    assert run(tmp_path, "planted", planted=tiny, test_fraction=0.5).manifest.test == 100
    assert len(list((tmp_path / "cache").iterdir())) == 2
