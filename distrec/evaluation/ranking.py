"""Exact ranking of the full catalogue by items that are sharded over workers.

Each worker ranks for its own users, whose known items and held-out items it has. The items come to it: blocks of
every worker's representations are broadcast in turn, and a block's best are merged into each user's list, so that
memory stays bounded.
"""

from dataclasses import dataclass

import numpy as np
import torch

from distrec.evaluation.topk import NO_ITEM, merge_topk, topk_block
from distrec.plan import Plan
from distrec.tables.exchange import Exchange

_BLOCK_ITEMS = 2**16
_SCORES = 2**23  # scores held at a time: 32 MiB


@dataclass(frozen=True)
class Pairs:
    """(row, item) pairs ordered by row: the items of some users, whom a row numbers."""

    row: np.ndarray
    item: np.ndarray

    def offsets(self, rows: int) -> np.ndarray:
        """Where each row starts, (rows + 1,)."""
        return np.searchsorted(self.row, np.arange(rows + 1))


def rank(
    users_UD: torch.Tensor, known: Pairs, own_items_VD: torch.Tensor, plan: Plan, exchange: Exchange, k: int
) -> torch.Tensor:
    """The k best items of each user by dot product, known items left out.

    Every worker calls it, also with no users.

    Args:
        users_UD: representations of this worker's users.
        known: items never to recommend to them.
        own_items_VD: representations of the items this worker owns, in the order of `plan.rows_of`.
        plan: whose items are whose.
        exchange: the group of workers.
        k: length of the lists.

    Returns:
        Item ids, (U, k) int64 on the CPU, best first, equal scores by the lower id; -1 where nothing is left.
    """
    users = len(users_UD)
    scores_UK = users_UD.new_full((users, k), -torch.inf)
    ids_UK = torch.full((users, k), NO_ITEM, dtype=torch.int64, device=users_UD.device)
    owner, local = plan.owner(known.item), plan.local(known.item)
    for worker in range(plan.workers):
        ids_V = torch.from_numpy(plan.rows_of(worker)).to(users_UD.device)
        theirs = owner == worker
        masked = Pairs(known.row[theirs], local[theirs])
        for first in range(0, len(ids_V), _BLOCK_ITEMS):
            last = min(first + _BLOCK_ITEMS, len(ids_V))
            block_VD = users_UD.new_empty(last - first, users_UD.shape[1])
            if worker == exchange.rank:
                block_VD = own_items_VD[first:last].contiguous()
            exchange.broadcast(block_VD, worker)
            for rows in _slices(users, max(1, _SCORES // (last - first))):
                scores_BV = users_UD[rows] @ block_VD.T
                _mask(scores_BV, masked, rows, first, last)
                best = topk_block(scores_BV, ids_V[first:last], k)
                scores_UK[rows], ids_UK[rows] = merge_topk((scores_UK[rows], ids_UK[rows]), best, k)
    return ids_UK.cpu()


def _mask(scores_BV: torch.Tensor, masked: Pairs, rows: slice, first: int, last: int) -> None:
    """Puts -inf on the masked pairs of some rows and the columns `first` .. `last`."""
    low, high = np.searchsorted(masked.row, [rows.start, rows.stop])
    row, item = masked.row[low:high] - rows.start, masked.item[low:high] - first
    inside = (item >= 0) & (item < last - first)
    places = torch.from_numpy(row[inside].astype(np.int64) * (last - first) + item[inside]).to(scores_BV.device)
    scores_BV.view(-1).index_fill_(0, places, -torch.inf)


def _slices(length: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, length)) for start in range(0, length, size)]
