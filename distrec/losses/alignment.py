"""Alignment and uniformity on the unit sphere, over the pairs of the global batch: DirectAU and MAWU.

Similarities of rows are computed in tiles of T rows, so that memory does not grow with the square of the batch.
"""

import math
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from distrec.losses.base import Loss, LossInputs, losses
from distrec.sharding.initialization import initializers
from distrec.sharding.table import TableSpec

_TILE = 2**22  # similarities held at a time: 16 MiB in float32


class PairSum(torch.autograd.Function):
    """sum over own rows a and all rows b != a of c_a c_b e^{-2 |x_a - x_b|^2}, c the counts of the rows.

    The gradient is that of the sum over all workers, at own rows: workers own different rows, and the terms (a, b) and
    (b, a) have the same gradient. It is computed with the value, tile by tile: each similarity once.
    """

    @staticmethod
    def forward(ctx: Any, rows_BD: Tensor, counts_B: Tensor, own: slice) -> Tensor:
        total, grad_BD = rows_BD.new_zeros((), dtype=torch.float64), torch.zeros_like(rows_BD)
        start, stop, _ = own.indices(len(rows_BD))
        size = max(1, _TILE // max(1, len(rows_BD)))
        for first in range(start, stop, size):
            last = min(first + size, stop)
            rows_TD = rows_BD[first:last]
            # |x - y|^2 = 2 - 2 x.y for unit rows
            weight_TB = (rows_TD @ rows_BD.T).sub_(1).mul_(4).exp_().mul_(counts_B)
            weight_TB.mul_(counts_B[first:last, None])
            weight_TB[torch.arange(last - first), torch.arange(first, last)] = 0
            sums_T = weight_TB.sum(1)
            total += sums_T.sum(dtype=torch.float64)
            grad_BD[first:last] = 8 * (weight_TB @ rows_BD)
        ctx.grad_BD = grad_BD
        return total.to(rows_BD.dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return ctx.grad_BD.mul_(grad), None, None


def log_uniformity(
    step: LossInputs, rows_BD: Tensor, counts_B: Tensor, own: slice, duplicates: bool, diagonal: bool
) -> Tensor:
    """Return this worker's share of the log of the mean of e^{-2 |x_b - x_c|^2} over pairs of rows, ().

    Args:
        step: the step, for the sum over workers.
        rows_BD: distinct or repeated rows of the global batch, of unit length, the same at all workers.
        counts_B: how often each row counts.
        own: rows whose terms this worker computes.
        duplicates: also count the pairs of equal rows that `counts_B` stands for.
        diagonal: take the mean as the MAWU authors do: over all B^2 entries of which the diagonal and the upper
            triangle are e^-4, as if those cosines were 0.
    """
    pairs = float(counts_B.sum())
    if pairs < 2:
        return rows_BD.sum() * 0
    total = step.exchange.all_sum(PairSum.apply(rows_BD, counts_B, own)) / 2  # type: ignore[no-untyped-call]
    if duplicates:
        total = total + float((counts_B * (counts_B - 1)).sum()) / 2
    if diagonal:
        mean = (total + pairs * (pairs + 1) / 2 * math.exp(-4)) / pairs**2
    else:
        mean = total / (pairs * (pairs - 1) / 2)
    return torch.log(mean) / step.workers


class _Uniform(Loss):
    rows: Literal["unique", "positions"] = "unique"
    """Rows of the uniformities: each user and item of the batch once (`unique`), or as often as it occurs."""

    reads = ("users_BD", "positives_BD", "batch")
    similarity = "cosine"

    def uniformities(self, step: LossInputs, diagonal: bool = False) -> tuple[Tensor, Tensor]:
        """Return this worker's shares of the uniformity of the users and of the items of the batch."""
        found = []
        for rows_UD, counts_U in (step.batch.unique_users(), step.batch.unique_items()):
            counted_U = (counts_U if self.rows == "positions" else torch.ones_like(counts_U)).to(rows_UD.dtype)
            share = -(-len(rows_UD) // step.workers)
            own = slice(step.rank * share, min((step.rank + 1) * share, len(rows_UD)))
            found.append(log_uniformity(step, rows_UD, counted_U, own, self.rows == "positions", diagonal))
        return found[0], found[1]


@losses.register("directau")
class DirectAU(_Uniform):
    """Alignment mean |u - i|^2 plus gamma times the mean of the uniformities of users and items (KDD 2022).

    Uniformity is log mean e^{-2 |x - y|^2} over the pairs of rows (PRISM paper, Eq. 8 and 9, with the 1/2 of
    the authors).
    """

    gamma: float = Field(1.0, ge=0)
    """Weight gamma of uniformity; published 1, 2 and 5."""

    def share(self, step: LossInputs) -> Tensor:
        align = (step.users_BD - step.positives_BD).square().sum() / step.pairs
        users, items = self.uniformities(step)
        return align + self.gamma * (users + items) / 2


@losses.register("mawu")
class MAWU(_Uniform):
    """-mean cos(theta_ui + margin_ui) + g1 uniformity of users + g2 of items, with learned margins (CIKM 2023).

    margin = 1 - sigmoid(m_u + m_i) radians, with m_u and m_i tables of width 1, kept in [0, 1] (PRISM paper,
    Eq. 10).
    """

    user_weight: float = Field(2.6, ge=0)
    """Weight g1 of the users' uniformity; published 2.6 (Gowalla), 0.8 (Yelp2018)."""
    item_weight: float = Field(1.4, ge=0)
    """Weight g2 of the items' uniformity; published 1.4 (Gowalla), 0.6 (Yelp2018)."""
    uniformity: Literal["authors", "pairs"] = "authors"
    """`authors`: diagonal and upper triangle of the matrix of cosines count as 0, as in both public codes; `pairs`: the
    mean over pairs, as in DirectAU."""

    def tables(self) -> tuple[TableSpec, ...]:
        init = initializers["xavier_normal"]()
        return (
            TableSpec("user_margins", "users", 1, init, bounds=(0.0, 1.0)),
            TableSpec("item_margins", "items", 1, init, bounds=(0.0, 1.0)),
        )

    def share(self, step: LossInputs) -> Tensor:
        user_B1, item_B1 = (step.tables[name].clamp(0, 1) for name in ("user_margins", "item_margins"))
        margin_B = 1 - torch.sigmoid(user_B1 + item_B1)[:, 0]
        cosine_B = (step.users_BD * step.positives_BD).sum(1).clamp(-1 + 1e-7, 1 - 1e-7)
        align = -torch.cos((torch.acos(cosine_B) + margin_B).clamp(0, math.pi)).sum() / step.pairs
        users, items = self.uniformities(step, self.uniformity == "authors")
        return align + self.user_weight * users + self.item_weight * items
