"""The K best items of each user: by score, equal scores by the lower item id, so that no split of the items shows.

`torch.topk` breaks ties as it likes. Here its answer is kept where the K-th score is above the next one, and only the
other rows, few in practice, are put right.
"""

import torch
from torch import Tensor

from distrec.core.errors import UserError

NO_ITEM = -1
NAN_SCORE = "a score is NaN: the model has diverged; lower the learning rate or raise the temperature"

# Width of the column groups in `_largest`. Measured on 512 x 40,981, K = 20: 32, 64 and 128 are alike, 64 is best.
_GROUP = 64


def topk_block(scores_BV: Tensor, ids_V: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k best columns of each row.

    Args:
        scores_BV: floating-point scores; -inf marks a masked item. Not changed.
        ids_V: int64 item id of each column, strictly ascending (a shard may own every W-th id).
        k: length of the lists, at least 1. It may exceed V.

    Returns:
        scores_BK, ids_BK: by descending score, then ascending id. Places with no item left hold -inf and the id -1.

    Raises:
        UserError: a score among the best is NaN (NaN counts as largest, so any NaN of the block is seen).
    """
    assert scores_BV.ndim == 2 and ids_V.shape == scores_BV.shape[1:] and k >= 1, (scores_BV.shape, ids_V.shape, k)
    width = scores_BV.shape[1]
    if width == 0:
        return _pad(scores_BV, ids_V.new_empty(scores_BV.shape), k)
    best_BK, columns_BK = _largest(scores_BV, min(k + 1, width))
    if best_BK.isnan().any():
        raise UserError(NAN_SCORE)
    if width > k:
        next_B, best_BK, columns_BK = best_BK[:, k], best_BK[:, :k], columns_BK[:, :k].clone()
        last_B = best_BK[:, -1]
        tied_R = ((last_B == next_B) & (last_B > -torch.inf)).nonzero().squeeze(1)
        if tied_R.numel():
            columns_BK[tied_R] = _lowest_tied_columns(scores_BV[tied_R], best_BK[tied_R], columns_BK[tied_R])
    ids_BK = ids_V[columns_BK].masked_fill(best_BK == -torch.inf, NO_ITEM)
    return _pad(*_in_order(best_BK, ids_BK), k)


def merge_topk(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor], k: int) -> tuple[Tensor, Tensor]:
    """The k best of two candidate lists of the same rows, each (scores_BK, ids_BK) from `topk_block` over other items.

    Associative and commutative, so workers and blocks may be merged in any order.
    """
    scores_BK, ids_BK = _in_order(torch.cat([a[0], b[0]], 1), torch.cat([a[1], b[1]], 1))
    return _pad(scores_BK[:, :k], ids_BK[:, :k], k)


def _largest(values_BV: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """`values_BV.topk(k)`, faster on wide rows: the k largest lie in the k column groups with the largest maxima.

    With equal values the columns may differ from those of `torch.topk`; the values never do.
    """
    groups = values_BV.shape[1] // _GROUP
    if groups < 8 * k:
        return values_BV.topk(k)
    body_BGC = values_BV[:, : groups * _GROUP].unflatten(1, (groups, _GROUP))
    group_BK = body_BGC.amax(2).topk(k, sorted=False).indices
    inside_C = torch.arange(_GROUP, device=values_BV.device)
    columns_BN = (group_BK[:, :, None] * _GROUP + inside_C).flatten(1)
    rest_R = torch.arange(groups * _GROUP, values_BV.shape[1], device=values_BV.device)
    columns_BN = torch.cat([columns_BN, rest_R.expand(len(columns_BN), -1)], 1)
    best_BK, places_BK = values_BV.gather(1, columns_BN).topk(k)
    return best_BK, columns_BN.gather(1, places_BK)


def _lowest_tied_columns(scores_RV: Tensor, best_RK: Tensor, columns_RK: Tensor) -> Tensor:
    """`columns_RK` with the columns at each row's K-th score replaced by the lowest ones that have this score."""
    width, k = scores_RV.shape[1], best_RK.shape[1]
    last_R1 = best_RK[:, -1:]
    # Distinct keys, larger for lower columns: their topk is exact.
    key_V = torch.arange(width, 0, -1, device=scores_RV.device, dtype=torch.int32)
    key_RV = torch.where(scores_RV == last_R1, key_V, key_V.new_zeros(()))
    tied_RK = width - _largest(key_RV, k)[0].long()
    above_R1 = (best_RK > last_R1).sum(1, keepdim=True)
    place_RK = torch.arange(k, device=scores_RV.device) - above_R1
    return torch.where(place_RK < 0, columns_RK, tied_RK.gather(1, place_RK.clamp(min=0)))


def _in_order(scores_BK: Tensor, ids_BK: Tensor) -> tuple[Tensor, Tensor]:
    """Both sorted by descending score, then ascending id."""
    ids_BK, by_id_BK = ids_BK.sort(1)
    scores_BK, by_score_BK = scores_BK.gather(1, by_id_BK).sort(dim=1, descending=True, stable=True)
    return scores_BK, ids_BK.gather(1, by_score_BK)


def _pad(scores_BK: Tensor, ids_BK: Tensor, k: int) -> tuple[Tensor, Tensor]:
    missing = k - scores_BK.shape[1]
    if missing <= 0:
        return scores_BK, ids_BK
    pad = torch.nn.functional.pad
    return pad(scores_BK, (0, missing), value=-torch.inf), pad(ids_BK, (0, missing), value=NO_ITEM)
