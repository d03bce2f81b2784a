"""Figures of the representations of one side, users or items, of all workers: their norms, directions and rank.

Only rows with training interactions count: others keep their initial values, or decay to 0. A cost of a few passes over
the rows, and of a D x D eigenvalue problem. S: rows of the sample.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from distrec.sharding.collectives import Exchange
from distrec.sharding.partition import Partition

_SAMPLE = 2**14  # rows of a side whose directions and percentiles are measured, at most
_DEAD = 1e-8  # norm below which a row counts as dead
_PERCENTILES = (1, 50, 99)
_CONSTANT = 1e-6  # relative deviation of norms that are equal but for rounding: no correlation is defined


@dataclass(frozen=True)
class Side:
    """The representations of the users or of the items that this worker owns."""

    name: str
    """`users` or `items`, the end of the figures' names."""
    rows_VD: Tensor
    degree_V: np.ndarray
    """Training interactions of each row."""
    partition: Partition


@torch.no_grad()
def diagnostics(side: Side, exchange: Exchange) -> dict[str, float]:
    """Return figures of a side by name. Collective.

    - effective_rank: exponential of the entropy of the singular values (Roy and Vetterli, EUSIPCO 2007), in [1, D]
    - effective_rank_share: the same over its bound, the smaller of D and the number of rows
    - mean_cosine: mean cosine of all pairs of different rows
    - norm_p1, norm_p50, norm_p99: percentiles of the norms
    - dead_rows: share of the rows that are not finite, or shorter than 1e-8

    All but the last are of an evenly spaced sample of at most 16,384 rows, and absent if all of these are dead.
    """
    rows_VD = side.rows_VD.float()
    trained_V = torch.from_numpy(side.degree_V > 0).to(rows_VD.device)
    norm_V = torch.linalg.vector_norm(rows_VD, dim=1)
    alive_V = trained_V & norm_V.isfinite() & (norm_V >= _DEAD)
    rows = side.partition.rows_of(exchange.rank)
    sampled_V = torch.from_numpy(rows % -(-side.partition.rows // _SAMPLE) == 0).to(rows_VD.device)
    chosen_V = alive_V & sampled_V
    norm_S, dim = norm_V[chosen_V].double(), rows_VD.shape[1]
    rows_SD = rows_VD[chosen_V].double()
    unit_SD = rows_SD / norm_S[:, None]
    counts = torch.stack([trained_V.sum(), (trained_V & ~alive_V).sum(), chosen_V.sum()]).double()
    sums = exchange.all_add(torch.cat([counts, unit_SD.sum(0), (rows_SD.T @ rows_SD).ravel()]))
    all_norm_S = exchange.gather(norm_S)[0].cpu().numpy()
    (trained, dead, sampled), unit_D, gram = sums[:3].tolist(), sums[3 : 3 + dim], sums[3 + dim :].view(dim, dim)
    figures = {"dead_rows": dead / max(1.0, trained)}
    if sampled:
        figures["effective_rank"] = _effective_rank(gram)
        figures["effective_rank_share"] = figures["effective_rank"] / min(dim, sampled)
        percentiles = np.percentile(all_norm_S, _PERCENTILES).tolist()
        figures |= {f"norm_p{p}": value for p, value in zip(_PERCENTILES, percentiles, strict=True)}
    if sampled > 1:
        # |sum of unit rows|^2 is the sum of the cosines of all pairs, of which `sampled` pair a row with itself.
        figures["mean_cosine"] = (float(unit_D.square().sum()) - sampled) / (sampled * (sampled - 1))
    return {f"{name}_{side.name}": value for name, value in figures.items()}


def _effective_rank(gram_DD: Tensor) -> float:
    """Return the exponential of the entropy of the singular values of X, given X^T X."""
    singular_D = torch.linalg.eigvalsh(gram_DD.cpu()).clamp(min=0).sqrt()
    share_D = singular_D / singular_D.sum()
    return float(torch.exp(torch.special.entr(share_D).sum()))


@torch.no_grad()
def norm_correlation(side: Side, exchange: Exchange) -> dict[str, float]:
    """Return {"norm_correlation_items": r}, the Pearson correlation of log(degree + 2) with the norms of the rows.
    Collective. Absent where it is not defined: fewer than two rows, or equal norms or degrees.
    """
    norm_V = torch.linalg.vector_norm(side.rows_VD.double(), dim=1).cpu().numpy()
    kept_V = (side.degree_V > 0) & np.isfinite(norm_V)
    both_2V = np.stack([np.log(side.degree_V[kept_V] + 2.0), norm_V[kept_V]])
    count, *totals = exchange.all_sum([float(kept_V.sum()), *both_2V.sum(1).tolist()])
    means_2 = np.array(totals) / max(1.0, count)
    centred_2V = both_2V - means_2[:, None]
    covariance = np.array(exchange.all_sum((centred_2V @ centred_2V.T).ravel().tolist())).reshape(2, 2)
    deviations_2 = np.sqrt(covariance.diagonal() / max(1.0, count))
    if count < 2 or (deviations_2 <= _CONSTANT * np.abs(means_2)).any():
        return {}
    correlation = covariance[0, 1] / np.sqrt(covariance[0, 0] * covariance[1, 1])
    return {f"norm_correlation_{side.name}": float(correlation)}
