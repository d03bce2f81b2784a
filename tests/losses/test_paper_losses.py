"""The losses of the papers: naive formulas pair by pair in float64, gradients, identities, edge cases.

Pairs, negatives and extra positives are drawn as unit rows, from which scores and norms follow.
"""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from distrec.losses import LossInputs, losses
from distrec.losses.alignment import log_uniformity
from distrec.sharding.collectives import Exchange
from distrec.sharding.differentiable import StepExchange

B, N, M, D, ITEMS = 7, 5, 3, 4, 40


def lse(values):
    return math.log(sum(math.exp(v) for v in values))


def mean(values):
    return sum(values) / len(values) if values else 0.0


def softplus(x):
    return math.log1p(math.exp(x))


def hinge(p, loss):
    return mean([max(0, loss.gamma + s - p.s) for s in p.negatives])


def simce(p, loss):
    return max(0, loss.gamma - p.s + max(p.negatives)) if p.negatives else 0.0


def ccl(p, loss):
    return 1 - p.s + loss.weight * mean([max(0, s - loss.margin) for s in p.negatives])


def mml(p, loss):
    sums = [
        sum(w * max(0, s - m) for m, w in zip(loss.margins, loss.margin_weights, strict=True)) for s in p.negatives
    ]
    return loss.positive_weight * (1 - p.s) + loss.negative_weight * mean(sums)


def contrastive(p, loss):
    return 0.5 * p.d**2 + 0.5 * sum(max(0, loss.margin - d) ** 2 for d in p.distances)


def triplet(p, loss):
    return mean([max(0, p.d**2 - d**2 + loss.margin) for d in p.distances])


def generalized_contrastive(p, loss):
    of_positive = {"zero": 0, "1-s": 1 - p.s, "d": p.d, "d^2": p.d**2}[loss.positive]
    m, terms = loss.margin, {
        "s-m": [s - loss.margin for s in p.negatives],
        "m-d": [loss.margin - d for d in p.distances],
        "d+m": [p.d - d + loss.margin for d in p.distances],
    }  # fmt: skip
    return loss.positive_weight * of_positive + loss.negative_weight * mean([max(0, x) for x in terms[loss.negative]])


def mse(p, loss):
    return (1 - p.s) ** 2 + loss.negative_weight * mean([s * s for s in p.negatives])


def bce(p, loss):
    return softplus(-p.s) + loss.negative_weight * mean([softplus(s) for s in p.negatives])


def mine(p, loss):
    return lse(p.negatives) - p.s if p.negatives else 0.0


def mine_plus(p, loss):
    t = loss.temperature
    return loss.negative_weight * lse([s / t for s in p.negatives]) - p.s / t if p.negatives else 0.0


def bsl(p, loss):
    t, n = loss.temperature, len(p.negatives)
    if not n:
        return 0.0
    of_user = math.log(mean([math.exp(s / t) for s in p.of_user]))
    if loss.form == "paper":
        t2 = loss.negative_temperature
        return -t * of_user + t2 * math.log(mean([math.exp(s / t2) for s in p.negatives]))
    b, negatives = loss.exponent, lse([s / t for s in p.negatives])
    return -p.s / t + b * negatives if loss.mode == "reweight" else -of_user + b * (negatives - math.log(n))


def tau(p, loss):
    liked = (1 + loss.alpha) * p.degree if loss.form == "ratio" else p.degree + loss.k
    return min(liked / ITEMS, 1 - 1 / ITEMS)


def user_weight(p, loss):
    return p.mean_degree / p.degree if loss.user_mean else 1.0


def debiased_infonce(p, loss):
    t, share = loss.temperature, tau(p, loss)
    estimate = mean([math.exp(s / t) for s in p.negatives]) - share * mean([math.exp(s / t) for s in p.extra])
    f = max(estimate / (1 - share), math.exp(-1 / t))
    weight = loss.negative_weight or len(p.negatives)
    return user_weight(p, loss) * (-p.s / t + math.log(math.exp(p.s / t) + weight * f))


def debiased(of_positive, of_negative):
    def formula(p, loss):
        share = tau(p, loss)
        negatives = mean([of_negative(s, loss) for s in p.negatives])
        extra = mean([of_negative(s, loss) for s in p.extra])
        loss_of_pair = share * of_positive(p.s) + loss.negative_weight * (negatives - share * extra)
        return user_weight(p, loss) * loss_of_pair

    return formula


CASES = {
    "hinge": [(hinge, {}), (hinge, {"gamma": 0.2})],
    "simce": [(simce, {}), (simce, {"gamma": 0.3})],
    "ccl": [(ccl, {"margin": 0.1}), (ccl, {"margin": -0.5, "weight": 3.0})],
    "mml": [(mml, {"margins": (-0.2, 0.1), "margin_weights": (0.4, 0.6), "positive_weight": 2.0})],
    "contrastive": [(contrastive, {"margin": 1.3})],
    "triplet": [(triplet, {"margin": 0.7})],
    "generalized_contrastive": [
        (generalized_contrastive, {"positive": f, "negative": g, "margin": 0.4, "positive_weight": 0.5})
        for f, g in (("1-s", "s-m"), ("d", "m-d"), ("d^2", "d+m"), ("zero", "m-d"))
    ],
    "mse": [(mse, {"negative_weight": 0.3})],
    "bce": [(bce, {"negative_weight": 4.0})],
    "mine": [(mine, {})],
    "mine_plus": [(mine_plus, {"temperature": 0.5, "negative_weight": 1.2})],
    "bsl": [
        (bsl, {"temperature": 0.3}),
        (bsl, {"mode": "reweight", "temperature": 0.3, "exponent": 1.2}),
        (bsl, {"form": "paper", "temperature": 0.4, "negative_temperature": 0.7}),
    ],
    "debiased_infonce": [
        (debiased_infonce, {"temperature": 0.5}),
        (debiased_infonce, {"form": "topk", "k": 30, "negative_weight": 200.0, "user_mean": True}),
    ],
    "debiased_mse": [(debiased(lambda s: (1 - s) ** 2, lambda s, loss: s * s), {"alpha": 0.5})],
    "debiased_ccl": [
        (debiased(lambda s: 1 - s, lambda s, loss: max(0, s - loss.margin)), {"margin": 0.1, "user_mean": True})
    ],
}
ALL = [(name, k) for name, cases in CASES.items() for k in range(len(cases))]
ON_BATCH = {"directau", "mawu", "softmax"}


def data(seed=0, masked=True):
    """Return unit rows by name, users of the pairs, and which negatives are masked."""
    generator = torch.Generator().manual_seed(seed)

    def unit(*shape):
        return torch.nn.functional.normalize(torch.randn(*shape, D, generator=generator, dtype=torch.float64), dim=-1)

    rows = {"u": unit(4), "i": unit(B), "j": unit(B, N), "k": unit(B, M)}
    hidden_BN = torch.zeros(B, N, dtype=torch.bool)
    if masked:
        hidden_BN[1, 2], hidden_BN[3, :4], hidden_BN[5] = True, True, True
    return rows, torch.tensor([0, 1, 1, 2, 3, 3, 3]), hidden_BN


def inputs(loss, rows, user_B, hidden_BN):
    """Return the inputs that a loss declares."""
    u_BD = rows["u"][user_B]
    scores = [torch.einsum("bd,b...d->b...", u_BD, rows[name]) for name in ("i", "j", "k")]
    fields = {
        "positive_B": scores[0],
        "negative_BN": scores[1].masked_fill(hidden_BN, -torch.inf),
        "extra_BM": scores[2],
        "degree_B": torch.tensor([3.0, 5.0, 8.0, 2.0], dtype=torch.float64)[user_B],
        "user_norm2_B": u_BD.square().sum(1),
        "positive_norm2_B": rows["i"].square().sum(1),
        "negative_norm2_BN": rows["j"].square().sum(2),
        "user_B": user_B,
    }
    always = {"pairs": B, "items": ITEMS, "workers": 1, "rank": 0, "mean_degree": 4.5}
    return LossInputs(**always, **{name: value for name, value in fields.items() if name in loss.needs()})


def pairs_of(rows, user_B, hidden_BN):
    """Return the values of each pair, in plain Python."""
    degrees, scores = [3.0, 5.0, 8.0, 2.0], [float(rows["u"][u] @ i) for u, i in zip(user_B, rows["i"], strict=True)]
    for b, user in enumerate(user_B.tolist()):
        u, kept = rows["u"][user], [n for n in range(N) if not hidden_BN[b, n]]
        yield SimpleNamespace(
            s=scores[b],
            negatives=[float(u @ rows["j"][b, n]) for n in kept],
            extra=[float(u @ k) for k in rows["k"][b]],
            d=float((u - rows["i"][b]).norm()),
            distances=[float((u - rows["j"][b, n]).norm()) for n in kept],
            of_user=[s for s, other in zip(scores, user_B.tolist(), strict=True) if other == user],
            degree=degrees[user],
            mean_degree=4.5,
        )


def test_every_loss_of_the_package_is_tested():
    from tests.losses.test_losses import FORMULAS

    own = {name for name, loss in losses.items() if loss.__module__.startswith("distrec.")}
    assert own == set(CASES) | (set(FORMULAS) & own) | ON_BATCH


@pytest.mark.parametrize(("name", "case"), ALL)
def test_against_the_formula(name, case):
    formula, options = CASES[name][case]
    loss = losses[name](**options)
    rows, user_B, hidden_BN = data(masked=not name.startswith("debiased"))
    found_B = loss.per_pair(inputs(loss, rows, user_B, hidden_BN))
    expected = [formula(p, loss) for p in pairs_of(rows, user_B, hidden_BN)]
    np.testing.assert_allclose(found_B, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("name", "case"), ALL)
def test_gradients(name, case):
    """Finite differences in float64, with masked negatives, of one and of all of a pair."""
    _, options = CASES[name][case]
    loss = losses[name](**options)
    rows, user_B, hidden_BN = data(seed=1, masked=not name.startswith("debiased"))
    names = list(rows)

    def function(*values):
        values = [torch.nn.functional.normalize(value, dim=-1) for value in values]
        return loss.share(inputs(loss, dict(zip(names, values, strict=True)), user_B, hidden_BN))

    leaves = [rows[name].clone().requires_grad_() for name in names]
    for leaf, gradient in zip(leaves, torch.autograd.grad(function(*leaves), leaves, allow_unused=True), strict=True):
        if gradient is None:
            continue
        assert gradient.isfinite().all()
        step = 1e-6 * torch.randn(leaf.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
        others = [other.detach() for other in leaves]
        index = next(k for k, other in enumerate(leaves) if other is leaf)
        up, down = ([*others[:index], leaf.detach() + sign * step, *others[index + 1 :]] for sign in (1, -1))
        difference = (function(*up) - function(*down)).item() / 2
        assert (gradient * step).sum().item() == pytest.approx(difference, rel=1e-4, abs=1e-12)


def value(name, rows=None, **options):
    loss = losses[name](**options)
    return loss.per_pair(inputs(loss, *(rows or data(masked=False))))


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def test_identities():
    """Section by section of the papers: special cases of each other, and bounds that hold for each sample."""
    one = value("ccl", margin=0.1, weight=7.0)
    close(value("mml", margins=(0.1,), margin_weights=(1.0,), negative_weight=7.0), one)
    close(value("mml", margins=(0.1,) * 4, margin_weights=(0.25,) * 4, negative_weight=7.0), one)
    close(value("generalized_contrastive", margin=0.1, negative_weight=7.0), one)
    rows, user_B, hidden_BN = data(masked=False)
    single = {**rows, "j": rows["j"][:, :1]}, user_B, hidden_BN[:, :1]
    close(value("simce", single, gamma=0.4), value("hinge", single, gamma=0.4))
    close(value("ssm", single, temperature=1.0), value("bpr", single))
    close(value("ssm", temperature=1.0), torch.nn.functional.softplus(value("mine")))
    close(value("mine_plus", temperature=1.0, negative_weight=1.0), value("mine"))
    plus = value("mine_plus", temperature=0.3, negative_weight=1.2)
    close(value("bsl", mode="reweight", temperature=0.3, exponent=1.2), plus)
    alone = rows | {"u": rows["u"][user_B]}, torch.arange(B), hidden_BN
    close(value("bsl", alone, temperature=0.3, exponent=1.2), value("mine_plus", alone, temperature=0.3, negative_weight=1.2) - 1.2 * math.log(N))
    paper = value("bsl", alone, form="paper", temperature=0.9, negative_temperature=0.3)
    close(paper, 0.3 * (value("mine_plus", temperature=0.3, negative_weight=1.0) - math.log(N)))
    close(value("triplet", margin=0.6), 2 * value("hinge", gamma=0.3))
    ssm, simce = value("ssm", temperature=1.0), value("simce", gamma=math.log(N))
    mine, bpr = value("mine"), value("bpr")
    assert (ssm <= math.log(2) + simce + 1e-12).all() and (ssm >= mine).all() and (mine >= value("simce", gamma=1e-9) - 1e-8).any()
    assert (bpr >= value("hinge", gamma=1e-12) - 1e-9).all()


def uniform(rows, authors=False):
    """Return the uniformity by a loop over unordered pairs of rows."""
    n = len(rows)
    terms = [math.exp(-2 * float((rows[a] - rows[b]).square().sum())) for a in range(n) for b in range(a)]
    if authors:
        return math.log((sum(terms) + n * (n + 1) / 2 * math.exp(-4)) / n**2)
    return math.log(sum(terms) / (n * (n - 1) / 2))


@pytest.mark.parametrize("authors", [False, True])
def test_uniformity_is_the_loop_over_pairs(authors, monkeypatch):
    """Counted rows equal repeated rows; tiles of any size; rows that are all equal; one row."""
    monkeypatch.setattr("distrec.losses.alignment._TILE", 3 * B)
    rows_BD = data()[0]["i"]
    step = LossInputs(exchange=StepExchange(Exchange(torch.device("cpu"))), workers=1)
    counts_B = torch.tensor([1, 2, 1, 3, 1, 1, 1], dtype=torch.float64)
    found = log_uniformity(step, rows_BD, counts_B, slice(0, B), duplicates=True, diagonal=authors)
    repeated = rows_BD.repeat_interleave(counts_B.long(), 0)
    assert float(found) == pytest.approx(uniform(repeated, authors), rel=1e-10)
    leaf = rows_BD.clone().requires_grad_()
    log_uniformity(step, leaf, torch.ones(B, dtype=torch.float64), slice(0, B), False, authors).backward()
    other = rows_BD.clone().requires_grad_()
    similar_BB = torch.exp(4 * other @ other.T - 4)
    total = (similar_BB.sum() - similar_BB.diagonal().sum()) / 2
    mean = (total + B * (B + 1) / 2 * math.exp(-4)) / B**2 if authors else total / (B * (B - 1) / 2)
    mean.log().backward()
    torch.testing.assert_close(leaf.grad, other.grad - 0, rtol=1e-9, atol=1e-12) if authors else close(leaf.grad, other.grad)
    lone = rows_BD[:1].clone().requires_grad_()
    log_uniformity(step, lone, torch.ones(1, dtype=torch.float64), slice(0, 1), True, authors).backward()
    assert not lone.grad.any()
