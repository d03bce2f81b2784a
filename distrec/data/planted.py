"""Synthetic data set with a known ground truth: power-law popularity and activity, low-rank taste.

A user with n interactions draws n different items by Gumbel-top-k (Kool, van Hoof and Welling, "Stochastic Beams and
Where to Find Them", ICML 2019): the n largest of `log pop_i + strength * <z_u, z_i> + Gumbel noise`, which is sampling
without replacement in proportion to the exponential of the first two terms.
"""

from dataclasses import dataclass

import numpy as np

from distrec.core.randomness import Purpose, generator
from distrec.data.config import MIN_ACTIVITY, PlantedConfig

_CELLS = 2**20  # user-item scores in memory at a time
_PARAMETERS, _CHOICES = 0, 1  # random streams: one for all parameters, one a user for the choices


@dataclass(frozen=True)
class Planted:
    """Interactions and the ground truth from which they were drawn.

    Attributes:
        users, items: (interactions,) int64 raw ids, ascending by user, then item; no pair occurs twice.
        user_taste, item_taste: (users, rank) and (items, rank); the product of a user and an item has variance 1.
        log_popularity: (items,); 0 for the most popular item.
        strength: weight of the taste term.
    """

    users: np.ndarray
    items: np.ndarray
    user_taste: np.ndarray
    item_taste: np.ndarray
    log_popularity: np.ndarray
    strength: float

    def scores(self, users: np.ndarray) -> np.ndarray:
        """Return the true log-preference for every item, up to a constant of the user: (len(users), items)."""
        return _log_preference(self.user_taste[users], self.item_taste, self.log_popularity, self.strength)


def make(config: PlantedConfig) -> Planted:
    """Make the data set, a pure function of its configuration. Takes about 30 ns a user-item pair."""
    draw = generator(config.seed, Purpose.PLANTED, _PARAMETERS)
    scale = config.rank**-0.25
    user_taste = draw.standard_normal((config.users, config.rank)) * scale
    item_taste = draw.standard_normal((config.items, config.rank)) * scale
    # Ranks are permuted, so that ids are independent of popularity and activity.
    log_popularity = -config.popularity_exponent * np.log(draw.permutation(config.items) + 1.0)
    counts = _activity(config)[draw.permutation(config.users)]
    chosen: list[np.ndarray] = []
    chunk = max(1, _CELLS // config.items)
    for first in range(0, config.users, chunk):
        taste = user_taste[first : first + chunk]
        scores = _log_preference(taste, item_taste, log_popularity, config.taste_strength)
        for user, row in enumerate(scores, start=first):
            noise = generator(config.seed, Purpose.PLANTED, _CHOICES, user).standard_exponential(config.items)
            row -= np.log(noise)  # minus the log of an exponential draw is a Gumbel draw
            chosen.append(np.sort(np.argpartition(row, config.items - counts[user])[config.items - counts[user] :]))
    users = np.repeat(np.arange(config.users), counts)
    items = np.concatenate(chosen).astype(np.int64)
    return Planted(users, items, user_taste, item_taste, log_popularity, config.taste_strength)


def _activity(config: PlantedConfig) -> np.ndarray:
    """Return the interactions of each user, most active first: a power law clipped to [2, cap] with the configured sum.

    The cap is half the catalogue, or more where the total requires it: a user who has every item cannot be evaluated.
    """
    total = config.interactions
    cap = max(MIN_ACTIVITY, config.items // 2, -(-total // config.users))
    weights = np.arange(1, config.users + 1) ** -config.activity_exponent

    def counts(scale: float) -> np.ndarray:
        return np.asarray(np.clip(np.floor(scale * weights), MIN_ACTIVITY, cap), np.int64)

    low, high = 0.0, 2 * cap / weights[-1]
    for _ in range(100):  # bisection to the last bit: the largest scale whose sum does not exceed the total
        middle = (low + high) / 2
        low, high = (middle, high) if counts(middle).sum() <= total else (low, middle)
    result = counts(low)
    # Users tied at the next step are incremented one by one, those nearest to it first, until the sum is exact.
    missing = total - result.sum()
    nearest = np.argsort(np.where(result < cap, -(low * weights % 1), np.inf), kind="stable")
    result[nearest[:missing]] += 1
    return result


def _log_preference(
    user_taste: np.ndarray, item_taste: np.ndarray, log_popularity: np.ndarray, strength: float
) -> np.ndarray:
    scores: np.ndarray = np.tile(log_popularity, (len(user_taste), 1))
    # Term by term, not as one matrix product: the order of BLAS's sums depends on the shape and on the machine.
    for dimension in range(user_taste.shape[1]):
        scores += (strength * user_taste[:, dimension, None]) * item_taste[None, :, dimension]
    return scores
