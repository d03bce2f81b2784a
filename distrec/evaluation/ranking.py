"""Exact ranking of the full catalogue, whose items are sharded over workers.

Each worker ranks for its own users, whose known and held-out items it has. Blocks of every worker's item
representations are broadcast in turn, and each block is merged into the users' top-K lists, so memory stays bounded.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from distrec.core.errors import UserError
from distrec.evaluation.topk import NAN_SCORE, NO_ITEM, merge_topk, topk_block
from distrec.kernels.dispatch import has_kernel
from distrec.models.base import Scorer
from distrec.sharding.collectives import Exchange
from distrec.sharding.partition import Partition

_BLOCK_ITEMS = 2**16
_SCORES = 2**23  # scores that plain torch holds at a time: 32 MiB in float32
_LONGEST = 256  # K up to which the compiled insertion is used. It takes 0.6 of plain torch's time; 2.3 with K = 1000.


@dataclass(frozen=True)
class UserItemPairs:
    """(user row, item) pairs, ordered by row."""

    row: np.ndarray
    item: np.ndarray

    def indptr(self, rows: int) -> np.ndarray:
        """Return the start of each row, (rows + 1,)."""
        return np.searchsorted(self.row, np.arange(rows + 1))

    def ordered(self) -> "UserItemPairs":
        """Return the pairs ordered by row and item."""
        falls = (self.item[1:] < self.item[:-1]) & (self.row[1:] == self.row[:-1])
        order = np.lexsort((self.item, self.row)) if falls.any() else slice(None)
        return UserItemPairs(self.row[order], self.item[order].astype(np.int64, copy=False))

    def select(self, chosen: np.ndarray, first: int = 0) -> "UserItemPairs":
        """Return the chosen pairs (a mask), items numbered from `first`."""
        return UserItemPairs(self.row[chosen], self.item[chosen] - first)


@torch.no_grad()
def rank(
    users_UD: Tensor, known: UserItemPairs, own_items_VD: Tensor, partition: Partition, exchange: Exchange, k: int
) -> Tensor:
    """Return the top-K items of each user by dot product, known items excluded. Collective, also without users.

    Args:
        users_UD: representations of this worker's users.
        known: items never to recommend to them.
        own_items_VD: representations of the items that this worker owns, in the order of `partition.rows_of`.
        partition: partition of the items.

    Returns:
        Item ids, (U, k) int64 on the CPU, best first, ties by ascending id; -1 where no item is left.

    Raises:
        UserError: a score is NaN.
    """
    assert k >= 1, k
    users, known = len(users_UD), known.ordered()
    best = (users_UD.new_full((users, k), -torch.inf), torch.full((users, k), NO_ITEM, device=users_UD.device))
    owner, local = partition.owner(known.item), UserItemPairs(known.row, partition.local(known.item))
    for worker in range(partition.workers):
        ids_V = torch.from_numpy(partition.rows_of(worker)).to(users_UD.device)
        shard_known = local.select(owner == worker)
        for first in range(0, len(ids_V), _BLOCK_ITEMS):
            last = min(first + _BLOCK_ITEMS, len(ids_V))
            block_VD = users_UD.new_empty(last - first, users_UD.shape[1])
            if worker == exchange.rank:
                block_VD = own_items_VD[first:last].contiguous()
            exchange.broadcast(block_VD, worker)
            masked = shard_known.select((shard_known.item >= first) & (shard_known.item < last), first)
            add_block(best, users_UD, block_VD, ids_V[first:last], masked)
    return best[1].cpu()


@torch.no_grad()
def rank_scores(
    scorer: Scorer, users: np.ndarray, known: UserItemPairs, items: int, exchange: Exchange, k: int
) -> Tensor:
    """Return the top-K items of each user by the scores of a scorer; arguments and result otherwise as of `rank`.

    Args:
        scorer: gives the scores. All workers call it for the same items, some maybe without users.
        users: local indices of this worker's users.
        items: items of the catalogue.
    """
    known = known.ordered()
    width = min(_BLOCK_ITEMS, items)
    size = max(1, _SCORES // width)
    longest = int(exchange.all_max(torch.tensor([len(users)], device=exchange.device)))
    ranked = torch.empty(len(users), k, dtype=torch.int64)
    for start in range(0, longest, size):
        rows = slice(min(start, len(users)), min(start + size, len(users)))
        best = topk_block(torch.empty(rows.stop - rows.start, 0), torch.empty(0, dtype=torch.int64), k)
        of_rows = known.select((known.row >= rows.start) & (known.row < rows.stop))
        for first in range(0, items, width):
            ids_V = np.arange(first, min(first + width, items))
            tile_UV = torch.empty(rows.stop - rows.start, len(ids_V))
            scorer.scores(users[rows], ids_V, tile_UV)
            inside = (of_rows.item >= first) & (of_rows.item < first + width)
            tile_UV[of_rows.row[inside] - rows.start, of_rows.item[inside] - first] = -torch.inf
            best = merge_topk(best, topk_block(tile_UV, torch.from_numpy(ids_V), k), k)
        ranked[rows] = best[1]
    return ranked


def add_block(
    best: tuple[Tensor, Tensor], users_UD: Tensor, items_VD: Tensor, ids_V: Tensor, masked: UserItemPairs
) -> None:
    """Merge items into the top-K lists.

    Args:
        best: (scores, ids), (U, k) each, ordered as by `topk_block`. Changed in place.
        users_UD: representations of the users.
        items_VD: representations of items that are not in the lists yet.
        ids_V: their ids, strictly ascending; lists may hold ids between them.
        masked: pairs of user and index into `ids_V` to leave out, ordered by both.

    Raises:
        UserError: a score is NaN.
    """
    if has_kernel(users_UD) and best[0].shape[1] <= _LONGEST:
        from distrec.kernels.numba import topk as kernel  # importing numba takes 0.5 s

        if not kernel.add_block(best, users_UD, items_VD, ids_V, (masked.indptr(len(users_UD)), masked.item)):
            raise UserError(NAN_SCORE)
    else:
        add_block_reference(best, users_UD, items_VD, ids_V, masked)


def add_block_reference(
    best: tuple[Tensor, Tensor], users_UD: Tensor, items_VD: Tensor, ids_V: Tensor, masked: UserItemPairs
) -> None:
    """`add_block` in plain torch, for any device and dtype."""
    (scores_UK, ids_UK), users, size = best, len(users_UD), max(1, _SCORES // len(ids_V))
    for start in range(0, users, size):
        rows = slice(start, min(start + size, users))
        scores_BV = users_UD[rows] @ items_VD.T
        _mask(scores_BV, masked, rows)
        found = topk_block(scores_BV, ids_V, scores_UK.shape[1])
        scores_UK[rows], ids_UK[rows] = merge_topk((scores_UK[rows], ids_UK[rows]), found, scores_UK.shape[1])


def _mask(scores_BV: Tensor, masked: UserItemPairs, rows: slice) -> None:
    """Set the scores of masked pairs in a slice of the user rows to -inf."""
    low, high = np.searchsorted(masked.row, [rows.start, rows.stop])
    flat = (masked.row[low:high].astype(np.int64) - rows.start) * scores_BV.shape[1] + masked.item[low:high]
    scores_BV.view(-1).index_fill_(0, torch.from_numpy(flat).to(scores_BV.device), -torch.inf)
