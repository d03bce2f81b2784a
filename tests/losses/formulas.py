"""The loss of one pair in plain Python, of every registered loss; and random pairs to compute it on.

`formula(pair, loss)` returns the loss of a pair; the loss of a batch is the mean over its pairs. `pairs_of` makes the
pairs. A loss of the package without an entry in `FORMULAS` fails the tests.
"""

import math
from dataclasses import dataclass, replace
from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor

from distrec.losses import Loss, LossInputs, losses
from distrec.losses.base import Catalogue, GlobalBatch
from distrec.sharding.collectives import Exchange
from distrec.sharding.differentiable import StepExchange


@dataclass(frozen=True)
class Pairs:
    """Pairs of a few users and items with negatives and extra positives, drawn at random: items repeat, and a positive
    is at times its own negative."""

    users_UD: Tensor
    items_VD: Tensor
    user_B: Tensor
    item_B: Tensor
    negative_BN: Tensor
    """Items of the negatives."""
    masked_BN: Tensor
    """Which negatives are masked."""
    extra_BM: Tensor
    """Items of the extra positives."""
    tables: dict[str, Tensor]
    """Rows of the loss's own tables."""

    @property
    def leaves(self) -> list[Tensor]:
        return [self.users_UD, self.items_VD, *self.tables.values()]

    def with_leaves(self, leaves: list[Tensor]) -> "Pairs":
        return replace(
            self, users_UD=leaves[0], items_VD=leaves[1], tables=dict(zip(self.tables, leaves[2:], strict=True))
        )

    @property
    def degree_U(self) -> Tensor:
        return torch.arange(1.0, len(self.users_UD) + 1).to(self.users_UD.dtype)


def draw(loss: Loss, pairs: int = 7, n: int = 5, m: int = 3, seed: int = 0, scale: float | None = None) -> Pairs:
    """Return pairs of 4 users and 12 items, D = 3. Rows have unit length, or are normal with deviation `scale`.

    Some negatives of the second and third pair are masked and all of the last, unless the loss draws known positives.
    """
    generator, (users, items) = torch.Generator().manual_seed(seed), (4, 12)

    def rows(count, width=3):
        return torch.randn(count, width, generator=generator, dtype=torch.float64)

    def index(high, *shape):
        return torch.randint(high, shape, generator=generator)

    users_UD, items_VD = rows(users), rows(items)
    if scale is None:
        users_UD, items_VD = (torch.nn.functional.normalize(x, dim=1) for x in (users_UD, items_VD))
    else:
        users_UD, items_VD = scale * users_UD, scale * items_VD
    masked_BN = torch.zeros(pairs, n, dtype=torch.bool)
    if not loss.draws_known_positives:
        masked_BN[1:2, : n // 2], masked_BN[2:3, 1:], masked_BN[3:][-1:] = True, True, True
    tables = {
        spec.name: 0.6 * rows({"users": users, "items": items}[spec.entity], spec.width) for spec in loss.tables()
    }
    drawn = index(users, pairs), index(items, pairs), index(items, pairs, n), masked_BN, index(items, pairs, m)
    return Pairs(users_UD, items_VD, *drawn, tables)


LOGIT = torch.tensor([0.7, -1.1, 0.4, 0.0])
"""A row's logit is its product with this."""


def inputs(loss: Loss, data: Pairs, **others) -> LossInputs:
    """Return the inputs that a loss declares, with others in their stead."""
    logit_U, logit_V = (rows @ LOGIT[: rows.shape[1]].to(rows) for rows in (data.users_UD, data.items_VD))
    u_BD, i_BD, items_VD = data.users_UD[data.user_B], data.items_VD[data.item_B], data.items_VD
    scores_BV, norm2_V, exchange = u_BD @ items_VD.T, items_VD.square().sum(1), Exchange(torch.device("cpu"))
    n, dtype = data.negative_BN.shape[1], u_BD.dtype
    fields = {
        "positive_B": lambda: scores_BV.gather(1, data.item_B[:, None])[:, 0],
        "negative_BN": lambda: scores_BV.gather(1, data.negative_BN).masked_fill(data.masked_BN, -torch.inf),
        "unmasked_B": lambda: n - data.masked_BN.sum(1).to(dtype),
        "log_q_BN": lambda: _log_q(data).to(dtype),
        "extra_BM": lambda: scores_BV.gather(1, data.extra_BM),
        "degree_B": lambda: data.degree_U[data.user_B].to(dtype),
        "positive_degree_B": lambda: 1 + data.item_B.to(dtype) % 4,
        "user_logit_B": lambda: logit_U[data.user_B],
        "positive_logit_B": lambda: logit_V[data.item_B],
        "negative_logit_BN": lambda: logit_V[data.negative_BN],
        "user_norm2_B": lambda: u_BD.square().sum(1),
        "positive_norm2_B": lambda: norm2_V[data.item_B],
        "negative_norm2_BN": lambda: norm2_V[data.negative_BN],
        "users_BD": lambda: u_BD,
        "positives_BD": lambda: i_BD,
        "user_B": lambda: data.user_B,
        "batch": lambda: GlobalBatch(u_BD, i_BD, data.user_B, data.item_B, slice(0, len(u_BD))),
        "catalogue": lambda: Catalogue(u_BD, items_VD, data.item_B, exchange),
    }
    index = {"users": data.user_B, "items": data.item_B}
    always = {
        "pairs": len(u_BD),
        "users": len(data.users_UD),
        "items": len(items_VD),
        "draws": n,
        "workers": 1,
        "rank": 0,
        "mean_degree": 4.5,
        "exchange": StepExchange(exchange),
        "tables": {spec.name: data.tables[spec.name][index[spec.entity]] for spec in loss.tables()},
    }
    declared = {name: field() for name, field in fields.items() if name in loss.needs() and name not in others}
    return LossInputs(**always | declared | others)


def _log_q(data: Pairs) -> Tensor:
    return -1.0 - 0.1 * data.negative_BN


def pairs_of(data: Pairs) -> list[SimpleNamespace]:
    """Return what a formula may use of each pair, in plain Python: floats, and rows as lists of floats."""
    users, items, log_q_BN = data.users_UD.tolist(), data.items_VD.tolist(), _log_q(data)
    user_B, item_B = data.user_B.tolist(), data.item_B.tolist()
    found = []
    for b, (user, item) in enumerate(zip(user_B, item_B, strict=True)):
        kept = (~data.masked_BN[b]).nonzero()[:, 0].tolist()
        negatives = [int(data.negative_BN[b, j]) for j in kept]
        pair = SimpleNamespace(
            s=dot(users[user], items[item]),
            negatives=[dot(users[user], items[j]) for j in negatives],  # scores of the unmasked
            log_q=[float(log_q_BN[b, j]) for j in kept],
            draws=data.masked_BN.shape[1],  # negatives, masked ones included
            extra=[dot(users[user], items[k]) for k in data.extra_BM[b].tolist()],
            d=distance(users[user], items[item]),
            distances=[distance(users[user], items[j]) for j in negatives],
            of_user=[dot(users[user], items[i]) for v, i in zip(user_B, item_B, strict=True) if v == user],
            catalogue=[dot(users[user], row) for row in items],
            scores_of_batch=[dot(users[v], items[i]) for v, i in zip(user_B, item_B, strict=True)],
            item_degree={i: 1.0 + i % 4 for i in item_B},
            logits=[dot(row, LOGIT[: len(row)].double().tolist()) for row in (users[user], items[item])],
            negative_logits=[dot(items[j], LOGIT[: len(items[j])].double().tolist()) for j in negatives],
            degree=float(data.degree_U[user]),
            mean_degree=4.5,
            items=len(items),
            users_of_batch=[(v, users[v]) for v in user_B],  # (id, row) of each position of the batch
            items_of_batch=[(i, items[i]) for i in item_B],
        )
        index = {"user": user, "item": item}
        pair.tables = {name: rows[index[name.split("_")[0]]].tolist() for name, rows in data.tables.items()}
        found.append(pair)
    return found


def dot(x, y):
    return sum(a * b for a, b in zip(x, y, strict=True))


def distance(x, y):
    return math.sqrt(sum((a - b) ** 2 for a, b in zip(x, y, strict=True)))


def mean(values):
    return sum(values) / len(values) if values else 0.0


def lse(values):
    return math.log(sum(math.exp(v) for v in values))


def softplus(x):
    return math.log(1 + math.exp(x))


def bpr(pair, loss):
    return mean([softplus(s - pair.s) for s in pair.negatives])


def hinge(pair, loss):
    return mean([max(0, loss.gamma + s - pair.s) for s in pair.negatives])


def ssm(pair, loss):
    t = loss.temperature
    weights = [1 / (pair.draws * math.exp(q)) if loss.log_q else 1.0 for q in pair.log_q]
    top = math.exp(pair.s / t)
    return -math.log(top / (top + sum(w * math.exp(s / t) for w, s in zip(weights, pair.negatives, strict=True))))


def softmax(pair, loss):
    return lse([s / loss.temperature for s in pair.catalogue]) - pair.s / loss.temperature


def simce(pair, loss):
    return max(0, loss.gamma - pair.s + max(pair.negatives)) if pair.negatives else 0.0


def ccl(pair, loss):
    return 1 - pair.s + loss.weight * mean([max(0, s - loss.margin) for s in pair.negatives])


def mml(pair, loss):
    margins = list(zip(loss.margins, loss.margin_weights, strict=True))
    sums = [sum(w * max(0, s - m) for m, w in margins) for s in pair.negatives]
    return loss.positive_weight * (1 - pair.s) + loss.negative_weight * mean(sums)


def contrastive(pair, loss):
    return pair.d**2 / 2 + sum(max(0, loss.margin - d) ** 2 for d in pair.distances) / 2


def triplet(pair, loss):
    return mean([max(0, pair.d**2 - d**2 + loss.margin) for d in pair.distances])


def generalized_contrastive(pair, loss):
    m, of_positive = loss.margin, {"zero": 0, "1-s": 1 - pair.s, "d": pair.d, "d^2": pair.d**2}[loss.positive]
    of_negatives = {
        "s-m": [s - m for s in pair.negatives],
        "m-d": [m - d for d in pair.distances],
        "d+m": [pair.d - d + m for d in pair.distances],
    }[loss.negative]
    return loss.positive_weight * of_positive + loss.negative_weight * mean([max(0, x) for x in of_negatives])


def mse(pair, loss):
    return (1 - pair.s) ** 2 + loss.negative_weight * mean([s * s for s in pair.negatives])


def bce(pair, loss):
    return softplus(-pair.s) + loss.negative_weight * mean([softplus(s) for s in pair.negatives])


def mine(pair, loss):
    return lse(pair.negatives) - pair.s if pair.negatives else 0.0


def mine_plus(pair, loss):
    t = loss.temperature
    return loss.negative_weight * lse([s / t for s in pair.negatives]) - pair.s / t if pair.negatives else 0.0


def bsl(pair, loss):
    t, n = loss.temperature, len(pair.negatives)
    if not n:
        return 0.0
    of_user = math.log(mean([math.exp(s / t) for s in pair.of_user]))
    if loss.form == "paper":
        t2 = loss.negative_temperature
        return -t * of_user + t2 * math.log(mean([math.exp(s / t2) for s in pair.negatives]))
    log_sum = lse([s / t for s in pair.negatives])
    if loss.mode == "reweight":
        return -pair.s / t + loss.exponent * log_sum
    return -of_user + loss.exponent * (log_sum - math.log(n))


def tau(pair, loss):
    liked = (1 + loss.alpha) * pair.degree if loss.form == "ratio" else pair.degree + loss.k
    return min(liked / pair.items, 1 - 1 / pair.items)


def debiased_infonce(pair, loss):
    t, share = loss.temperature, tau(pair, loss)
    negatives, extra = (mean([math.exp(s / t) for s in scores]) for scores in (pair.negatives, pair.extra))
    f = max((negatives - share * extra) / (1 - share), math.exp(-1 / t))
    weight = loss.negative_weight or len(pair.negatives)
    of_pair = -pair.s / t + math.log(math.exp(pair.s / t) + weight * f)
    return of_pair * (pair.mean_degree / pair.degree if loss.user_mean else 1)


def debiased(of_positive, of_negative):
    """Return the formula of a pointwise loss with the correction for positives among the negatives."""

    def formula(pair, loss):
        negatives, extra = (mean([of_negative(s, loss) for s in scores]) for scores in (pair.negatives, pair.extra))
        share = tau(pair, loss)
        of_pair = share * of_positive(pair.s) + loss.negative_weight * (negatives - share * extra)
        return of_pair * (pair.mean_degree / pair.degree if loss.user_mean else 1)

    return formula


def uniformity(of_batch, loss, authors=False):
    """Return the log of the mean of e^{-2 d^2} over unordered pairs of positions or distinct rows; 0 for one row."""
    rows = list(dict(of_batch).values()) if loss.rows == "unique" else [row for _, row in of_batch]
    n = len(rows)
    if n < 2:
        return 0.0
    terms = [math.exp(-2 * distance(rows[a], rows[b]) ** 2) for a in range(n) for b in range(a)]
    if authors:  # the mean over an n x n matrix whose diagonal and upper triangle are cosines of 0
        return math.log((sum(terms) + (n * (n + 1) // 2) * math.exp(-4)) / n**2)
    return math.log(mean(terms))


def directau(pair, loss):
    uniform = [uniformity(of_batch, loss) for of_batch in (pair.users_of_batch, pair.items_of_batch)]
    return pair.d**2 + loss.gamma * sum(uniform) / 2


def mawu(pair, loss):
    in_bounds = [min(1, max(0, pair.tables[name][0])) for name in ("user_margins", "item_margins")]
    margin = 1 - 1 / (1 + math.exp(-sum(in_bounds)))
    align = -math.cos(min(math.pi, math.acos(min(1 - 1e-7, max(1e-7 - 1, pair.s))) + margin))
    users, items = (
        uniformity(of_batch, loss, loss.uniformity == "authors")
        for of_batch in (pair.users_of_batch, pair.items_of_batch)
    )
    return align + loss.user_weight * users + loss.item_weight * items


def ipl(pair, loss):
    sums = {}
    for (item, _), s in zip(pair.items_of_batch, pair.scores_of_batch, strict=True):
        sums[item] = sums.get(item, 0) + 1 / (1 + math.exp(-s))
    rates = [c / pair.item_degree[item] ** (2 - loss.gamma) for item, c in sums.items()]
    n = len(rates)
    deviation = math.sqrt(sum((r - mean(rates)) ** 2 for r in rates) / (n - 1)) if n > 1 else 0.0
    return bpr(pair, loss) + loss.weight * deviation


def resn(pair, loss):
    users, items = (dict(rows).values() for rows in (pair.users_of_batch, pair.items_of_batch))
    scores = np.array([[dot(user, item) for item in items] for user in users])
    column_sums = scores.sum(0)
    return bpr(pair, loss) + loss.weight * ((scores @ column_sums) ** 2).sum() / (column_sums**2).sum()


def macr(pair, loss):
    def of(positive, negatives):
        return softplus(-positive) + mean([softplus(x) for x in negatives])

    user, item = pair.logits
    of_user = of(user, [user] * len(pair.negatives))
    of_item = of(item, pair.negative_logits)
    return of(pair.s, pair.negatives) + loss.item_weight * of_item + loss.user_weight * of_user


FORMULAS = {
    "bpr": bpr,
    "hinge": hinge,
    "ssm": ssm,
    "infonce": ssm,
    "softmax": softmax,
    "simce": simce,
    "ccl": ccl,
    "mml": mml,
    "contrastive": contrastive,
    "triplet": triplet,
    "generalized_contrastive": generalized_contrastive,
    "mse": mse,
    "bce": bce,
    "mine": mine,
    "mine_plus": mine_plus,
    "bsl": bsl,
    "debiased_infonce": debiased_infonce,
    "debiased_mse": debiased(lambda s: (1 - s) ** 2, lambda s, loss: s * s),
    "debiased_ccl": debiased(lambda s: 1 - s, lambda s, loss: max(0, s - loss.margin)),
    "directau": directau,
    "mawu": mawu,
    "ipl": ipl,
    "resn": resn,
    "macr": macr,
}
# Options to test beside the defaults.
OPTIONS = {
    "ssm": [{"log_q": True}, {"temperature": 1.0}],
    "simce": [{"gamma": 0.3}],
    "ccl": [{"margin": 0.1}, {"margin": -0.5, "weight": 3.0}],
    "mml": [{"margins": (-0.2, 0.1), "margin_weights": (0.4, 0.6), "positive_weight": 2.0}],
    "generalized_contrastive": [
        {"positive": f, "negative": g, "margin": 0.4}
        for f in ("zero", "1-s", "d", "d^2")
        for g in ("s-m", "m-d", "d+m")
    ],
    "bsl": [
        {"mode": "reweight", "exponent": 1.3},
        {"form": "paper", "temperature": 0.4, "negative_temperature": 0.7},
    ],
    "debiased_infonce": [
        {"form": "topk", "k": 3, "user_mean": True},
        {"temperature": 1.0, "negative_weight": 200.0},
        {"alpha": 20.0},
        {"temperature": 0.01},
    ],
    "debiased_mse": [{"user_mean": True}, {"form": "topk", "k": 2}],
    "debiased_ccl": [{"margin": 0.1, "user_mean": True}, {"margin": -0.3, "alpha": 0.5}],
    "directau": [{"rows": "positions"}],
    "ipl": [{"gamma": 2.0, "weight": 3.0}, {"gamma": 0.3}],
    "resn": [{"weight": 0.3}],
    "macr": [{"item_weight": 0.6, "user_weight": 0.8}],
    "mawu": [{"rows": "positions"}, {"uniformity": "pairs"}, {"rows": "positions", "uniformity": "pairs"}],
}


def variants(name: str) -> list[Loss]:
    """Return a loss with its defaults, with seven tenths of each number, and with the options above."""
    loss = losses[name]()
    scaled = {key: 0.7 * value for key, value in dict(loss).items() if type(value) is float}
    return [losses[name](**options) for options in ({}, scaled, *OPTIONS.get(name, ()))]
