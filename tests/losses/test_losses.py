"""Each registered loss against its formula in float64, pair by pair, and at extremes."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from distrec.losses import Scores, losses
from distrec.losses.base import log_sum_exp
from distrec.losses.config import LossConfig


def bpr(positive, negatives, t, log_q):
    return sum(math.log1p(math.exp(s - positive)) for s in negatives) / len(negatives) if negatives else 0.0


def ssm(positive, negatives, t, log_q):
    q = [lq + math.log(len(negatives)) for lq in log_q] if log_q else [0.0] * len(negatives)
    top = math.exp(positive / t)
    return -math.log(top / (top + sum(math.exp(s / t - c) for s, c in zip(negatives, q, strict=True))))


FORMULAS = {"bpr": bpr, "ssm": ssm}
scores = st.floats(-3, 3)


def test_every_loss_has_a_formula():
    assert set(losses) == set(FORMULAS)


@pytest.mark.parametrize("name", sorted(FORMULAS))
@given(
    positive=st.lists(scores, min_size=1, max_size=4),
    n=st.integers(1, 5),
    t=st.floats(0.2, 2),
    corrected=st.booleans(),
    data=st.data(),
)
def test_against_the_formula(name, positive, n, t, corrected, data):
    negative = [data.draw(st.lists(scores, min_size=n, max_size=n)) for _ in positive]
    log_q = [[-1.0 - 0.1 * j for j in range(n)] for _ in positive] if corrected else None
    found = losses[name](
        Scores(
            torch.tensor(positive, dtype=torch.float64),
            torch.tensor(negative, dtype=torch.float64),
            torch.tensor(log_q, dtype=torch.float64) if log_q else None,
        ),
        LossConfig(name=name, temperature=t),
    )
    expected = [
        FORMULAS[name](p, row, t, log_q[k] if log_q else None)
        for k, (p, row) in enumerate(zip(positive, negative, strict=True))
    ]
    assert torch.allclose(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", sorted(FORMULAS))
def test_masked_negatives_do_not_count(name):
    config = LossConfig(name=name, temperature=0.5)
    positive = torch.tensor([0.3, -0.2, 0.1], requires_grad=True)
    negative = torch.tensor([[1.0, 2.0, 3.0], [1.0, 2.0, 3.0], [1.0, 2.0, 3.0]], requires_grad=True)
    mask = torch.tensor([[True, False, False], [False, False, False], [True, True, True]])
    loss = losses[name](Scores(positive, negative.masked_fill(mask, -torch.inf)), config)
    alone = losses[name](Scores(positive[:1], negative[:1, 1:]), config)
    assert torch.allclose(loss[0], alone[0]) and loss[2] == 0
    loss.sum().backward()
    assert positive.grad.isfinite().all() and negative.grad.isfinite().all()
    assert (negative.grad[mask] == 0).all() and positive.grad[2] == 0


@pytest.mark.parametrize("name", sorted(FORMULAS))
def test_extremes_keep_their_gradient(name):
    """The worst-ranked pair has a gradient of full strength; the best-ranked pair has loss 0."""
    positive = torch.tensor([-1e4, 1e4], requires_grad=True)
    negative = torch.tensor([[1e4], [-1e4]], requires_grad=True)
    loss = losses[name](Scores(positive, negative), LossConfig(name=name, temperature=1.0))
    loss.sum().backward()
    assert loss.tolist() == [2e4, 0.0]
    assert positive.grad.tolist() == [-1.0, 0.0] and negative.grad.flatten().tolist() == [1.0, 0.0]


@pytest.mark.parametrize("name", sorted(FORMULAS))
def test_empty(name):
    config = LossConfig(name=name)
    assert losses[name](Scores(torch.zeros(0), torch.zeros(0, 5)), config).shape == (0,)
    assert losses[name](Scores(torch.ones(2), torch.zeros(2, 0)), config).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("t", [0.05, 1.0])
def test_log_sum_exp_equals_torch(t):
    generator = torch.Generator().manual_seed(0)
    scores_BN = 30 * torch.randn(5, 7, generator=generator, dtype=torch.float64)
    scores_BN[1, 2:5] = -torch.inf
    scores_BN[2] = 1e4
    weight_B, found = torch.randn(5, generator=generator, dtype=torch.float64), []
    for function in (log_sum_exp, lambda s, t: torch.logsumexp(s / t, 1)):
        leaf_BN = scores_BN.clone().requires_grad_()
        result_B = function(leaf_BN, t)
        (result_B * weight_B).sum().backward()
        found.append((result_B.detach(), leaf_BN.grad))
    torch.testing.assert_close(found[0], found[1], rtol=1e-10, atol=1e-13)
    nothing = log_sum_exp(torch.full((1, 3), -torch.inf, requires_grad=True), t)
    assert nothing.item() == -torch.inf
