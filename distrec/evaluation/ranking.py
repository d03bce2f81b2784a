"""Exact ranking of the full catalogue by items that are sharded over workers.

Each worker ranks for its own users, whose known items and held-out items it has. The items come to it: blocks of
every worker's representations are broadcast in turn, and a block's best are merged into each user's list, so that
memory stays bounded.
"""

from dataclasses import dataclass

import numpy as np
import torch

from distrec.evaluation.topk import NO_ITEM, merge_topk, topk_block
from distrec.sharding.collectives import Exchange
from distrec.sharding.partition import Partition

_BLOCK_ITEMS = 2**16
_SCORES = 2**23  # scores that plain torch holds at a time: 32 MiB
_LONGEST = 256  # list for the compiled loop, which moves what is worse: 0.6 of plain torch's time, and 2.3 with 1000


@dataclass(frozen=True)
class Pairs:
    """(row, item) pairs ordered by row: the items of some users, whom a row numbers."""

    row: np.ndarray
    item: np.ndarray

    def indptr(self, rows: int) -> np.ndarray:
        """Where each row starts, (rows + 1,)."""
        return np.searchsorted(self.row, np.arange(rows + 1))

    def ordered(self) -> "Pairs":
        """By item within a row, too."""
        falls = (self.item[1:] < self.item[:-1]) & (self.row[1:] == self.row[:-1])
        order = np.lexsort((self.item, self.row)) if falls.any() else slice(None)
        return Pairs(self.row[order], self.item[order].astype(np.int64, copy=False))

    def part(self, chosen: np.ndarray, first: int = 0) -> "Pairs":
        """The chosen ones, with items numbered from `first`."""
        return Pairs(self.row[chosen], self.item[chosen] - first)


@torch.no_grad()
def rank(
    users_UD: torch.Tensor, known: Pairs, own_items_VD: torch.Tensor, partition: Partition, exchange: Exchange, k: int
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
    assert k >= 1, k
    users, known = len(users_UD), known.ordered()
    best = (users_UD.new_full((users, k), -torch.inf), torch.full((users, k), NO_ITEM, device=users_UD.device))
    owner, local = partition.owner(known.item), Pairs(known.row, partition.local(known.item))
    for worker in range(partition.workers):
        ids_V = torch.from_numpy(partition.rows_of(worker)).to(users_UD.device)
        theirs = local.part(owner == worker)
        for first in range(0, len(ids_V), _BLOCK_ITEMS):
            last = min(first + _BLOCK_ITEMS, len(ids_V))
            block_VD = users_UD.new_empty(last - first, users_UD.shape[1])
            if worker == exchange.rank:
                block_VD = own_items_VD[first:last].contiguous()
            exchange.broadcast(block_VD, worker)
            masked = theirs.part((theirs.item >= first) & (theirs.item < last), first)
            add_block(best, users_UD, block_VD, ids_V[first:last], masked)
    return best[1].cpu()


def add_block(
    best: tuple[torch.Tensor, torch.Tensor],
    users_UD: torch.Tensor,
    items_VD: torch.Tensor,
    ids_V: torch.Tensor,
    masked: Pairs,
) -> None:
    """Takes items into the lists of the best.

    Args:
        best: (scores, ids), (U, k) each, ordered as `topk_block` orders them. Changed.
        users_UD: representations of the users.
        items_VD: representations of items that are not in the lists.
        ids_V: their ids, strictly ascending; lists may have ids between them.
        masked: user and place in `ids_V` of the pairs to leave out, ordered by both.
    """
    compiled = users_UD.device.type == "cpu" and users_UD.dtype in (torch.float32, torch.float64)
    if compiled and best[0].shape[1] <= _LONGEST:
        from distrec.kernels.numba import topk as tiles  # here, as importing numba takes a good part of a second

        tiles.add_block(best, users_UD, items_VD, ids_V, (masked.indptr(len(users_UD)), masked.item))
    else:
        add_block_reference(best, users_UD, items_VD, ids_V, masked)


def add_block_reference(
    best: tuple[torch.Tensor, torch.Tensor],
    users_UD: torch.Tensor,
    items_VD: torch.Tensor,
    ids_V: torch.Tensor,
    masked: Pairs,
) -> None:
    """`add_block` in plain torch, for any device and dtype."""
    scores_UK, ids_UK = best
    for rows in _slices(len(users_UD), max(1, _SCORES // len(ids_V))):
        scores_BV = users_UD[rows] @ items_VD.T
        _mask(scores_BV, masked, rows)
        found = topk_block(scores_BV, ids_V, scores_UK.shape[1])
        scores_UK[rows], ids_UK[rows] = merge_topk((scores_UK[rows], ids_UK[rows]), found, scores_UK.shape[1])


def _mask(scores_BV: torch.Tensor, masked: Pairs, rows: slice) -> None:
    """Puts -inf on the masked pairs of some rows."""
    low, high = np.searchsorted(masked.row, [rows.start, rows.stop])
    places = (masked.row[low:high].astype(np.int64) - rows.start) * scores_BV.shape[1] + masked.item[low:high]
    scores_BV.view(-1).index_fill_(0, torch.from_numpy(places).to(scores_BV.device), -torch.inf)


def _slices(length: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, length)) for start in range(0, length, size)]
