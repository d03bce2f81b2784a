"""Top-K items of each user: by score, ties by ascending item id, so that the result does not depend on the sharding.

`torch.topk` breaks ties arbitrarily. Its result is kept where the K-th score is above the next one; only the other
rows, few in practice, are corrected. Letters: T rows with such a tie, G groups of C columns, S candidate columns.
"""

import torch
from torch import Tensor

from distrec.core.errors import UserError

NO_ITEM = -1
NAN_SCORE = "a score is NaN: the model has diverged; lower the learning rate or raise the temperature"

# Width of the column groups in `_largest`. Measured on 512 x 40,981, K = 20: 32, 64 and 128 are alike, 64 is best.
_GROUP = 64


def topk_block(scores_BV: Tensor, ids_V: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the k best columns of each row.

    Args:
        scores_BV: floating-point scores; -inf marks a masked item. Not changed.
        ids_V: int64 item id of each column, strictly ascending (a shard may own every W-th id).
        k: length of the lists, at least 1. It may exceed V.

    Returns:
        scores_BK, ids_BK: by descending score, then ascending id. Entries without an item hold -inf and the id -1.

    Raises:
        UserError: a score is NaN. (NaN counts as the largest score, so only the K best are checked.)
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
        tied_T = ((last_B == next_B) & (last_B > -torch.inf)).nonzero().squeeze(1)
        if tied_T.numel():
            columns_BK[tied_T] = _lowest_tied_columns(scores_BV[tied_T], best_BK[tied_T], columns_BK[tied_T])
    ids_BK = ids_V[columns_BK].masked_fill(best_BK == -torch.inf, NO_ITEM)
    return _pad(*_ordered(best_BK, ids_BK), k)


def merge_topk(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor], k: int) -> tuple[Tensor, Tensor]:
    """Return the k best of two lists for the same rows, each (scores_BK, ids_BK) from `topk_block` over disjoint items.

    Associative and commutative, so workers and blocks may be merged in any order.
    """
    scores_BK, ids_BK = _ordered(torch.cat([a[0], b[0]], 1), torch.cat([a[1], b[1]], 1))
    return _pad(scores_BK[:, :k], ids_BK[:, :k], k)


def _largest(values_BV: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return `values_BV.topk(k)`, faster on wide rows: the k largest lie in the k column groups of largest maximum.

    With ties the columns may differ from those of `torch.topk`; the values never do.
    """
    groups = values_BV.shape[1] // _GROUP
    if groups < 8 * k:
        return values_BV.topk(k)
    body_BGC = values_BV[:, : groups * _GROUP].view(len(values_BV), groups, _GROUP)
    group_BK = body_BGC.amax(2).topk(k, sorted=False).indices
    inside_C = torch.arange(_GROUP, device=values_BV.device)
    columns_BS = (group_BK[:, :, None] * _GROUP + inside_C).flatten(1)
    rest = torch.arange(groups * _GROUP, values_BV.shape[1], device=values_BV.device)
    columns_BS = torch.cat([columns_BS, rest.expand(len(columns_BS), -1)], 1)
    best_BK, index_BK = values_BV.gather(1, columns_BS).topk(k)
    return best_BK, columns_BS.gather(1, index_BK)


def _lowest_tied_columns(scores_TV: Tensor, best_TK: Tensor, columns_TK: Tensor) -> Tensor:
    """Return `columns_TK` with the columns at each row's K-th score replaced by the lowest ones with that score."""
    width, k = scores_TV.shape[1], best_TK.shape[1]
    last_T1 = best_TK[:, -1:]
    # Distinct keys, larger for lower columns: their topk is exact.
    key_V = torch.arange(width, 0, -1, device=scores_TV.device, dtype=torch.int32)
    key_TV = torch.where(scores_TV == last_T1, key_V, key_V.new_zeros(()))
    tied_TK = width - _largest(key_TV, k)[0].long()
    above_T1 = (best_TK > last_T1).sum(1, keepdim=True)
    nth_tied_TK = torch.arange(k, device=scores_TV.device) - above_T1
    return torch.where(nth_tied_TK < 0, columns_TK, tied_TK.gather(1, nth_tied_TK.clamp(min=0)))


def _ordered(scores_BK: Tensor, ids_BK: Tensor) -> tuple[Tensor, Tensor]:
    """Return both sorted by descending score, then ascending id."""
    ids_BK, by_id_BK = ids_BK.sort(1)
    scores_BK, by_score_BK = scores_BK.gather(1, by_id_BK).sort(dim=1, descending=True, stable=True)
    return scores_BK, ids_BK.gather(1, by_score_BK)


def _pad(scores_BK: Tensor, ids_BK: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Pad the lists to k columns with -inf and NO_ITEM."""
    missing = k - scores_BK.shape[1]
    if missing <= 0:
        return scores_BK, ids_BK
    pad = torch.nn.functional.pad
    return pad(scores_BK, (0, missing), value=-torch.inf), pad(ids_BK, (0, missing), value=NO_ITEM)
