"""Each registered loss on scores against its formula in float64, pair by pair, and at extremes."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from distrec.losses import Loss, LossInputs, losses
from distrec.losses.base import log_sum_exp


def bpr(positive, negatives, log_q, loss):
    return sum(math.log1p(math.exp(s - positive)) for s in negatives) / len(negatives) if negatives else 0.0


def ssm(positive, negatives, log_q, loss):
    t, n = loss.temperature, len(negatives)
    shift = [lq + math.log(n) if loss.log_q else 0.0 for lq in log_q]
    top = math.exp(positive / t)
    return -math.log(top / (top + sum(math.exp(s / t - c) for s, c in zip(negatives, shift, strict=True))))


# Loss of a pair from its scores, the log q of its negatives, and the loss for its options.
FORMULAS = {"bpr": bpr, "ssm": ssm}
OPTIONS = {"temperature": st.floats(0.2, 2), "log_q": st.booleans()}
ON_SCORES = {"positive_B", "negative_BN", "log_q_BN"}
scores = st.floats(-3, 3)


def make_loss(name: str, **options) -> Loss:
    """Return a loss with those of the options that it has."""
    return losses[name](**{key: value for key, value in options.items() if key in losses[name].model_fields})


def inputs(loss: Loss, positive_B, negative_BN, log_q_BN=None, pairs=1, draws=None) -> LossInputs:
    """Return inputs with just the fields that the loss declares."""
    fields = {"positive_B": positive_B, "negative_BN": negative_BN, "log_q_BN": log_q_BN}
    draws = negative_BN.shape[1] if draws is None else draws
    return LossInputs(
        pairs=pairs, draws=draws, **{name: value for name, value in fields.items() if name in loss.needs()}
    )


def test_every_loss_on_scores_has_a_formula():
    own = {name: loss for name, loss in losses.items() if loss.__module__.startswith("distrec.")}
    on_scores = {name for name, loss in own.items() if ON_SCORES.issuperset(loss.reads)}
    assert on_scores <= set(FORMULAS) <= set(losses)
    assert "softmax" not in on_scores


@pytest.mark.parametrize("name", sorted(FORMULAS))
@given(positive=st.lists(scores, min_size=1, max_size=4), n=st.integers(1, 5), data=st.data())
def test_against_the_formula(name, positive, n, data):
    loss = losses[name](**{option: data.draw(OPTIONS[option], option) for option in losses[name].model_fields})
    negative = [data.draw(st.lists(scores, min_size=n, max_size=n)) for _ in positive]
    log_q = [[-1.0 - 0.1 * j for j in range(n)] for _ in positive]
    step = inputs(loss, *(torch.tensor(values, dtype=torch.float64) for values in (positive, negative, log_q)), pairs=7)
    pairs = zip(positive, negative, log_q, strict=True)
    expected = torch.tensor([FORMULAS[name](*pair, loss) for pair in pairs], dtype=torch.float64)
    assert torch.allclose(loss.per_pair(step), expected, rtol=1e-12, atol=1e-12)
    assert torch.allclose(loss.share(step), expected.sum() / 7, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", sorted(FORMULAS))
def test_masked_negatives_do_not_count(name):
    loss = make_loss(name, temperature=0.5)
    positive = torch.tensor([0.3, -0.2, 0.1], requires_grad=True)
    negative = torch.tensor([[1.0, 2.0, 3.0], [1.0, 2.0, 3.0], [1.0, 2.0, 3.0]], requires_grad=True)
    mask = torch.tensor([[True, False, False], [False, False, False], [True, True, True]])
    loss_B = loss.per_pair(inputs(loss, positive, negative.masked_fill(mask, -torch.inf)))
    alone = loss.per_pair(inputs(loss, positive[:1], negative[:1, 1:]))
    assert torch.allclose(loss_B[0], alone[0]) and loss_B[2] == 0
    loss_B.sum().backward()
    assert positive.grad.isfinite().all() and negative.grad.isfinite().all()
    assert (negative.grad[mask] == 0).all() and positive.grad[2] == 0


@pytest.mark.parametrize("name", sorted(FORMULAS))
def test_extremes_keep_their_gradient(name):
    """The worst-ranked pair has a gradient of full strength; the best-ranked pair has loss 0."""
    positive = torch.tensor([-1e4, 1e4], requires_grad=True)
    negative = torch.tensor([[1e4], [-1e4]], requires_grad=True)
    loss = make_loss(name, temperature=1.0)
    loss_B = loss.per_pair(inputs(loss, positive, negative))
    loss_B.sum().backward()
    assert loss_B.tolist() == [2e4, 0.0]
    assert positive.grad.tolist() == [-1.0, 0.0] and negative.grad.flatten().tolist() == [1.0, 0.0]


@pytest.mark.parametrize("name", sorted(FORMULAS))
def test_empty(name):
    loss = make_loss(name)
    assert loss.per_pair(inputs(loss, torch.zeros(0), torch.zeros(0, 5))).shape == (0,)
    assert loss.share(inputs(loss, torch.zeros(0), torch.zeros(0, 5))) == 0  # of a worker without pairs
    assert loss.per_pair(inputs(loss, torch.ones(2), torch.zeros(2, 0))).tolist() == [0.0, 0.0]


def test_log_q_in_batch_estimates_the_sum_over_all_items():
    """The mean over all batches of B pairs, positives drawn from q, where the pair's own one is masked."""
    (q_V, score_V), B = torch.tensor([[0.5, 0.3, 0.2], [0.4, -0.3, 0.8]], dtype=torch.float64), 3
    loss, mean = losses["ssm"](temperature=0.5, log_q=True), 0.0
    for others in itertools.product(range(3), repeat=B - 1):
        index = torch.tensor([0, *others])
        negative_1N = score_V[index].index_fill(0, torch.tensor([0]), -torch.inf)[None]
        step = inputs(loss, score_V[:1], negative_1N, q_V[index].log()[None], draws=B - 1)
        odds = math.expm1(loss.per_pair(step).item())  # sum of e^{s_j / t} / (N q_j), over e^{s_ui / t}
        mean += odds * math.exp(score_V[0].item() / 0.5) * q_V[index[1:]].prod().item()
    assert mean == pytest.approx((score_V / 0.5).exp().sum().item(), rel=1e-12)


def test_an_input_that_is_not_declared_is_an_error():
    with pytest.raises(AttributeError, match="log_q_BN is not among the inputs of this loss: name it in `reads`"):
        _ = LossInputs(pairs=1).log_q_BN


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
