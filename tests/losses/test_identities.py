"""Losses that are special cases of each other, and bounds between them that hold for each pair.

`test_losses.py` compares each loss with its formula; here the formulas are compared with what the papers claim of them.
"""

import itertools
import math
from dataclasses import replace

import pytest
import torch

from distrec.losses import losses
from tests.losses.formulas import draw, inputs, pairs_of

LOG2 = math.log(2)


def data(name="bpr", scale=1.0, masked=False, **shape):
    drawn = draw(losses[name](), scale=scale, **shape)
    return drawn if masked else replace(drawn, masked_BN=torch.zeros_like(drawn.masked_BN))


def value(name, given, others=(), **options):
    """Return the losses of some pairs, (B,), or that of the batch, with some of the inputs replaced."""
    loss = losses[name](**options)
    step = inputs(loss, given, **dict(others))
    return loss.share(step) if "batch" in loss.needs() or "catalogue" in loss.needs() else loss.per_pair(step)


def same(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("masked", [False, True])
def test_one_margin_or_equal_margins(masked):
    given = data(masked=masked)
    ccl = value("ccl", given, margin=0.1, weight=7.0)
    for margins in (1, 4):
        options = {"margins": (0.1,) * margins, "margin_weights": (1 / margins,) * margins}
        same(value("mml", given, negative_weight=7.0, **options), ccl)
    same(value("generalized_contrastive", given, margin=0.1, negative_weight=7.0), ccl)


@pytest.mark.parametrize("n", [1, 5])
def test_the_family_of_the_softmax(n):
    given = data(n=n, masked=n > 1)
    some_B = (~given.masked_BN).any(1)
    ssm, mine = value("ssm", given, temperature=1.0), value("mine", given)
    if n == 1:
        same(ssm, value("bpr", given))
        same(value("simce", given, gamma=0.4), value("hinge", given, gamma=0.4))
    same(ssm[some_B], torch.nn.functional.softplus(mine)[some_B])
    same(value("mine_plus", given, temperature=1.0, negative_weight=1.0), mine)
    divided = replace(given, users_UD=given.users_UD / 0.3)
    same(value("mine_plus", given, temperature=0.3, negative_weight=1.0), value("mine", divided))


def test_bilateral_softmax_is_mine_plus():
    given, t, b = data(), 0.3, 1.2
    plus = value("mine_plus", given, temperature=t, negative_weight=b)
    same(value("bsl", given, mode="reweight", temperature=t, exponent=b), plus)
    users = given.users_UD[given.user_B]
    alone = replace(given, users_UD=users, user_B=torch.arange(len(users)))  # each pair of a user of its own
    n = given.negative_BN.shape[1]
    same(value("bsl", alone, temperature=t, exponent=b), plus - b * math.log(n))
    paper = value("bsl", alone, form="paper", temperature=0.9, negative_temperature=t)
    same(paper, t * (value("mine_plus", given, temperature=t, negative_weight=1.0) - math.log(n)))
    one = value("bsl", alone, mode="reweight", temperature=1.0, exponent=1.0)
    same(torch.nn.functional.softplus(one), value("ssm", alone, temperature=1.0))  # the positive is not in its sum


def test_debiased_losses_without_their_correction():
    """tau = 0 for InfoNCE; extra positives with scores of 0, which cost nothing, for the pointwise ones."""
    given = data(scale=None)
    tau_0 = {"degree_B": torch.zeros(7, dtype=torch.float64)}
    same(value("debiased_infonce", given, tau_0, temperature=0.4), value("ssm", given, temperature=0.4))
    tau, lam = 3 / 12, 0.7
    others = {"degree_B": torch.full((7,), 3.0), "extra_BM": torch.zeros(7, 3, dtype=torch.float64)}
    ccl = value("debiased_ccl", given, others, margin=0.1, negative_weight=lam)
    same(ccl, tau * value("ccl", given, margin=0.1, weight=lam / tau))
    squares = value("debiased_mse", given, others, negative_weight=lam)
    same(squares, tau * value("mse", given, negative_weight=lam / tau))


def test_on_unit_rows_distances_are_scores():
    given = data(scale=None, masked=True)
    same(value("triplet", given, margin=0.6), 2 * value("hinge", given, gamma=0.3))
    cosine_B = inputs(losses["bpr"](), given).positive_B
    same(value("directau", given, gamma=0.0), 2 * (1 - cosine_B).mean())


@pytest.mark.parametrize("rows", ["unique", "positions"])
def test_mawu_without_margins_is_directau(rows):
    given, gamma = data("mawu", scale=None), 1.6
    directau = value("directau", given, gamma=gamma, rows=rows)
    weights = {"user_weight": gamma / 4, "item_weight": gamma / 4}
    with pytest.MonkeyPatch.context() as patch:  # no margin in the bounds makes an angle of 0
        patch.setattr(torch, "sigmoid", torch.ones_like)
        same(value("mawu", given, uniformity="pairs", rows=rows, **weights), directau / 2 - 1)


def test_uniformity_lies_between_that_of_opposite_and_of_equal_rows():
    given, align = data(scale=None), {"gamma": 0.0}
    row = torch.tensor([[1.0, 0.0, 0.0]], dtype=torch.float64)
    for items_VD, user_B, expected in ((torch.cat([row, -row]), [0, 1], -8.0), (torch.cat([row, row]), [0, 1], 0.0)):
        both = replace(given, users_UD=items_VD, items_VD=items_VD, user_B=torch.tensor(user_B))
        both = replace(both, item_B=both.user_B)  # negatives are not read
        same(value("directau", both) - value("directau", both, **align), torch.tensor(expected, dtype=torch.float64))
    for seed in range(5):
        given = data(scale=None, seed=seed)
        assert -8 <= value("directau", given) - value("directau", given, **align) <= 0


def test_softmax_is_the_sampled_one_with_every_other_item():
    given = data()
    others = [[j for j in range(12) if j != i] for i in given.item_B.tolist()]
    every = replace(given, negative_BN=torch.tensor(others), masked_BN=torch.zeros(7, 11, dtype=torch.bool))
    same(value("softmax", given, temperature=0.5), value("ssm", every, temperature=0.5).mean())


@pytest.mark.parametrize(("n", "scale"), itertools.product([2, 5, 40], [0.3, 1.0, 3.0]))
def test_bounds(n, scale):
    """Equations 6 of SimCE, 11, 12, 14 and 15 of MINE, for each pair; D_j is s_uj - s_ui."""
    given, log_n = data(n=n, scale=scale, pairs=30), math.log(n)
    difference_BN = torch.tensor(
        [[s - pair.s for s in pair.negatives] for pair in pairs_of(given)], dtype=torch.float64
    )
    highest_B, mean_B = difference_BN.amax(1), difference_BN.mean(1)
    ssm, mine, bpr = value("ssm", given, temperature=1.0), value("mine", given), value("bpr", given)
    simce, hinge = value("simce", given, gamma=log_n), value("hinge", given, gamma=1e-300)

    def descending(*bounds):
        for larger, smaller in itertools.pairwise(bounds):
            assert (larger >= smaller - 1e-12).all()

    descending(LOG2 + simce, ssm)
    descending(highest_B.clamp(min=0) + math.log(n + 1), ssm, mine, highest_B)
    descending(mine, mean_B + log_n)
    weighted_B = torch.log1p(n * difference_BN.exp()).mean(1)
    same(weighted_B, (1 / n + difference_BN.exp()).log().mean(1) + log_n)
    descending(ssm, weighted_B, mean_B + log_n)
    descending(bpr, hinge, mean_B)
    descending(LOG2 + hinge, bpr)
    assert (bpr > hinge).any()  # hinge alone is no bound of bpr


UNCHANGED = ["bpr", "hinge", "ssm", "softmax", "simce", "mine", "triplet"]
CHANGED = ["mse", "bce", "ccl", "mml", "mine_plus", "debiased_mse", "debiased_ccl"]


@pytest.mark.parametrize("name", UNCHANGED + CHANGED)
def test_a_constant_added_to_all_scores(name):
    """By one more dimension, in which all users are 1 and all items 0.8."""
    given, found = data(name, masked=name in UNCHANGED), []
    for constant in (0.0, 0.8):
        users_UD, items_VD = (
            torch.nn.functional.pad(rows, (0, 1), value=x)
            for rows, x in ((given.users_UD, 1.0), (given.items_VD, constant))
        )
        found.append(value(name, replace(given, users_UD=users_UD, items_VD=items_VD)))
    if name in UNCHANGED:
        same(*found)
    else:
        assert ((found[0] - found[1]).abs() > 1e-3).all()


def test_gradients_of_scores():
    """bpr keeps the full gradient of a pair 1e4 behind; simce has that of one negative, ccl and mml of none below m."""

    def gradient(name, negatives, positive=0.0, **options):
        leaves = {"positive_B": torch.tensor([positive]), "negative_BN": torch.tensor([negatives])}
        leaves = {key: leaf.requires_grad_() for key, leaf in leaves.items()}
        loss = losses[name](**options)
        n = torch.tensor([float(len(negatives))])
        given = draw(loss, pairs=1, n=len(negatives))
        loss.per_pair(inputs(loss, given, **leaves, unmasked_B=n)).sum().backward()
        return leaves["positive_B"].grad.tolist(), leaves["negative_BN"].grad[0].tolist()

    assert gradient("bpr", [1e4]) == ([-1], [1])
    assert gradient("simce", [0.5, 2.0, 2.0, 1.0]) == ([-1], [0, 1, 0, 0])  # of equal ones the first
    assert gradient("ccl", [0.89, 0.95], weight=4.0) == ([-1], [0, 2])
    assert gradient("mml", [0.65, 0.75], negative_weight=4.0) == ([-1], [0, pytest.approx(0.2)])
