"""Each registered loss against its formula, pair by pair, with its gradient; masks, extremes, emptiness, invariance.

A loss that is registered gets these tests, whoever registers it, once its formula is in `tests/losses/formulas.py`.
"""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from distrec.losses import Loss, LossInputs, losses
from distrec.losses.row_sums import log_sum_exp
from distrec.models.scoring import l2_normalize
from tests.losses.formulas import FORMULAS, draw, inputs, pairs_of, variants

# Pairs, negatives and extra positives.
SHAPES = [(7, 5, 3), (4, 1, 1), (1, 3, 2), (2, 40, 1)]
SCORES = ("positive_B", "negative_BN", "extra_BM")


def scales(loss: Loss) -> list[float | None]:
    """Return the scales of rows on which a loss is defined: unit length, and two others unless it needs cosines."""
    return [None] if loss.similarity == "cosine" else [None, 0.5, 1.5]


def gradients(loss, data, **others):
    """Return the loss of the batch, and the gradients of the rows."""
    leaves = [leaf.clone().requires_grad_() for leaf in data.leaves]
    share = loss.share(inputs(loss, data.with_leaves(leaves), **others))
    if not share.requires_grad:
        return share, [torch.zeros_like(leaf) for leaf in leaves]
    found = torch.autograd.grad(share, leaves, allow_unused=True)
    return share, [torch.zeros_like(x) if g is None else g for x, g in zip(leaves, found, strict=True)]


def score_gradients(loss, data):
    """Return the losses of the pairs, and the gradients of their scores by name."""
    scores = {k: v.clone().requires_grad_() for k, v in vars(inputs(loss, data)).items() if k in SCORES}
    loss_B = loss.per_pair(inputs(loss, data, **scores))
    loss_B.sum().backward()
    return loss_B.detach(), {k: torch.zeros_like(v) if v.grad is None else v.grad for k, v in scores.items()}


def test_every_loss_of_the_package_has_a_formula():
    own = {name for name, loss in losses.items() if loss.__module__.startswith("distrec.")}
    assert own == own & FORMULAS.keys()


@pytest.mark.parametrize("name", FORMULAS)
def test_against_the_formula(name):
    for loss, (shape, seed) in itertools.product(variants(name), zip(SHAPES, range(9), strict=False)):
        for scale in scales(loss):
            data = draw(loss, *shape, seed=seed, scale=scale)
            expected_B = [FORMULAS[name](pair, loss) for pair in pairs_of(data)]
            share = loss.share(inputs(loss, data))
            np.testing.assert_allclose(share, np.mean(expected_B), rtol=1e-10, atol=1e-12, err_msg=repr(loss))
            if type(loss).share is Loss.share:
                np.testing.assert_allclose(loss.per_pair(inputs(loss, data)), expected_B, rtol=1e-10, atol=1e-12)
            single = data.with_leaves([leaf.float() for leaf in data.leaves])
            size = max(1, np.abs(expected_B).max())
            assert abs(loss.share(inputs(loss, single)).item() - np.mean(expected_B)) < 2e-4 * size, repr(loss)


@pytest.mark.parametrize("name", FORMULAS)
def test_gradient(name):
    """Against central differences in float64, along a random direction of each table."""
    for loss, seed in itertools.product(variants(name), (0, 1)):
        for scale in scales(loss):
            data = draw(loss, seed=seed, scale=scale)

            def share(leaves, loss=loss, data=data, scale=scale):
                rows = [torch.nn.functional.normalize(x, dim=1) for x in leaves[:2]] if scale is None else leaves[:2]
                return loss.share(inputs(loss, data.with_leaves([*rows, *leaves[2:]])))

            leaves = [leaf.clone().requires_grad_() for leaf in data.leaves]
            found = torch.autograd.grad(share(leaves), leaves)
            for k, gradient in enumerate(found):
                step = 1e-6 * torch.randn(gradient.shape, dtype=torch.float64)
                up, down = (
                    share([leaf.detach() + (sign * step if n == k else 0) for n, leaf in enumerate(leaves)]).item()
                    for sign in (1, -1)
                )
                near = pytest.approx((up - down) / 2, rel=1e-5, abs=1e-13 * (1 + abs(up)))
                assert (gradient * step).sum().item() == near, (loss, scale, k)


@pytest.mark.parametrize("name", FORMULAS)
def test_masked_negatives_have_no_gradient(name):
    for loss in variants(name):
        if "negative_BN" in loss.needs() and not loss.draws_known_positives:
            data = draw(loss)
            _, found = score_gradients(loss, data)
            assert all(gradient.isfinite().all() for gradient in found.values())
            assert not found["negative_BN"][data.masked_BN].any() and found["negative_BN"].any()


@pytest.mark.parametrize("name", ["bpr", "hinge", "simce", "ssm", "triplet", "mine", "mine_plus", "bsl"])
@pytest.mark.parametrize("n", [0, 1, 4])
def test_a_pair_without_negatives_costs_nothing(name, n):
    """Of a user who knows every item; its gradient is 0 too."""
    for loss in variants(name):
        data = draw(loss, n=n)
        loss_B, found = score_gradients(loss, replace(data, masked_BN=torch.ones_like(data.masked_BN)))
        assert not loss_B.any() and not any(gradient.any() for gradient in found.values())


@pytest.mark.parametrize("name", FORMULAS)
def test_extremes(name):
    """Scores of +-1e4, cosines of +-1: finite, and the worst-ranked pair has a gradient in the right direction."""
    for loss, dtype in itertools.product(variants(name), (torch.float32, torch.float64)):
        length = 1.0 if loss.similarity == "cosine" else 100.0
        rows, data = torch.tensor([[length, 0.0], [-length, 0.0]], dtype=dtype), draw(loss, 2, 2, 1)
        data = replace(
            data,
            users_UD=rows[[0, 0]],
            items_VD=rows,
            user_B=torch.tensor([0, 1]),
            item_B=torch.tensor([1, 0]),
            negative_BN=torch.tensor([[0, 0], [1, 1]]),
            masked_BN=torch.zeros(2, 2, dtype=torch.bool),
            extra_BM=torch.tensor([[1], [0]]),
            tables={key: table[:2].to(dtype) for key, table in data.tables.items()},
        )
        share, found = gradients(loss, data)
        assert share.isfinite() and all(gradient.isfinite().all() for gradient in found), loss
        if type(loss).share is Loss.share:
            loss_B, found = score_gradients(loss, data)
            assert loss_B[0] > loss_B[1], loss
            assert found["positive_B"][0] <= 0 <= found["negative_BN"][0].min(), loss
            if getattr(loss, "positive", "") != "zero":  # its negatives at distance 0 have no gradient
                assert found["positive_B"][0] < 0 or found["negative_BN"][0].max() > 0, loss


@pytest.mark.parametrize("name", FORMULAS)
def test_nothing(name):
    """No pairs at this worker; no negatives; a batch of one pair."""
    for loss in variants(name):
        share, found = gradients(loss, draw(loss, pairs=0), pairs=7)
        assert share == 0 and not any(gradient.any() for gradient in found)
        if not loss.draws_known_positives:
            data = draw(loss, n=0)
            expected = np.mean([FORMULAS[name](pair, loss) for pair in pairs_of(data)])
            assert loss.share(inputs(loss, data)).item() == pytest.approx(expected, rel=1e-10, abs=1e-12)


@pytest.mark.parametrize("name", FORMULAS)
def test_rows_of_zeros_under_cosine(name):
    """Their cosines are 0, and their gradients finite."""
    for loss in variants(name):
        data = draw(loss)
        users_UD, items_VD, *tables = (leaf.float() for leaf in data.leaves)
        users_UD[0], items_VD[:3] = 0, 0
        leaves = [leaf.requires_grad_() for leaf in (users_UD, items_VD, *tables)]
        given = data.with_leaves([l2_normalize(users_UD), l2_normalize(items_VD), *tables])
        share = loss.share(inputs(loss, given))
        share.backward()
        assert share.isfinite() and all(leaf.grad is None or leaf.grad.isfinite().all() for leaf in leaves)
        if "batch" not in loss.needs():  # whose distances are 2 - 2 cos, also of a row of zeros
            expected = np.mean([FORMULAS[name](pair, loss) for pair in pairs_of(given)])
            assert share.item() == pytest.approx(expected, abs=2e-4 * (1 + abs(expected))), loss


@pytest.mark.parametrize("name", FORMULAS)
def test_under_cosine_lengths_of_rows_change_nothing(name):
    """The loss stays as it is when a row is multiplied by c > 0, and its gradient is orthogonal to the row."""
    for loss in variants(name):
        data, shares = draw(loss), []
        for factor in (1.0, 3.0):
            users_UD, items_VD = (rows * factor ** torch.arange(len(rows))[:, None] for rows in data.leaves[:2])
            leaves = [users_UD.requires_grad_(), items_VD.requires_grad_()]
            normalized = [torch.nn.functional.normalize(leaf, dim=1) for leaf in leaves]
            share = loss.share(inputs(loss, data.with_leaves([*normalized, *data.tables.values()])))
            shares.append(share.item())
            for leaf, gradient in zip(leaves, torch.autograd.grad(share, leaves), strict=True):
                along = (leaf.detach() * gradient).sum(1).abs()
                assert (along <= 1e-12 * (1 + gradient.norm() * leaf.detach().norm())).all()
        assert shares[1] == pytest.approx(shares[0], rel=1e-9)


@pytest.mark.parametrize("name", ["bpr", "hinge", "simce", "ssm", "triplet"])
def test_an_item_drawn_as_its_own_negative_has_no_gradient(name):
    loss = losses[name]()
    data = draw(loss, n=1, scale=1.0)
    data = replace(data, negative_BN=data.item_B[:, None], masked_BN=torch.zeros_like(data.masked_BN))
    _, found = gradients(loss, data)
    assert all(gradient.abs().max() < 1e-15 for gradient in found)


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


def test_log_q_in_batch_estimates_the_sum_over_all_items():
    """The mean over all batches of B pairs, positives drawn from q, where the pair's own one is masked."""
    (q_V, score_V), B = torch.tensor([[0.5, 0.3, 0.2], [0.4, -0.3, 0.8]], dtype=torch.float64), 3
    loss, mean = losses["ssm"](temperature=0.5, log_q=True), 0.0
    for others in itertools.product(range(3), repeat=B - 1):
        index = torch.tensor([0, *others])
        negative_1N = score_V[index].index_fill(0, torch.tensor([0]), -torch.inf)[None]
        step = LossInputs(positive_B=score_V[:1], negative_BN=negative_1N, log_q_BN=q_V[index].log()[None], draws=B - 1)
        odds = math.expm1(loss.per_pair(step).item())  # sum of e^{s_j / t} / (N q_j), over e^{s_ui / t}
        mean += odds * math.exp(score_V[0].item() / 0.5) * q_V[index[1:]].prod().item()
    assert mean == pytest.approx((score_V / 0.5).exp().sum().item(), rel=1e-12)
