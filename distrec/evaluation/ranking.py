"""Exact ranking of the full catalogue, whose items are sharded over workers.

Each worker ranks for its own users, whose known and held-out items it has. Blocks of every worker's item
representations are broadcast in turn, and each block is merged into the users' top-K lists, so memory stays bounded.
"""

from collections.abc import Callable, Iterator
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
_USERS = 2**12  # users ranked between two calls of `progress`, some seconds at most; a multiple of the kernel's tile
# Scores that plain torch holds at a time: 32 and 512 MiB in float32. The planner's RANKED_SCORES is that of GPUs.
_SCORES = {"cpu": 2**23, "cuda": 2**27}
_LONGEST = 256  # K up to which the compiled insertion is used. It takes 0.6 of plain torch's time; 2.3 with K = 1000.

Progress = Callable[[float], object]
"""Receives the share of this worker's scores that have been ranked, in (0, 1]."""


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

    def within(self, chosen_V: np.ndarray | None) -> "UserItemPairs":
        """Return the pairs with chosen items (a mask over the items), numbered among these; None chooses all."""
        if chosen_V is None:
            return self
        kept = self.select(chosen_V[self.item])
        return UserItemPairs(kept.row, (np.cumsum(chosen_V) - 1)[kept.item])

    def of_rows(self, rows: slice) -> "UserItemPairs":
        """Return the pairs of some rows, numbered from the first of these."""
        low, high = np.searchsorted(self.row, [rows.start, rows.stop])
        return UserItemPairs(self.row[low:high] - rows.start, self.item[low:high])


@torch.no_grad()
def rank(
    users_UD: Tensor,
    known: UserItemPairs,
    own_items_VD: Tensor,
    partition: Partition,
    exchange: Exchange,
    k: int,
    candidates: np.ndarray | None = None,
    progress: Progress = lambda share: None,
) -> tuple[Tensor, Tensor]:
    """Return the top-K items of each user by dot product, known items excluded. Collective, also without users.

    Args:
        users_UD: representations of this worker's users.
        known: items never to recommend to them.
        own_items_VD: representations of the items that this worker owns, in the order of `partition.rows_of`.
        partition: partition of the items.
        candidates: (items,) bool, equal at all workers: the items to rank; None ranks all.
        progress: called as the ranking proceeds.

    Returns:
        (scores; item ids, int64), (U, k) each on the CPU, best first, ties by ascending id; -inf and -1 where no item
        is left.

    Raises:
        UserError: a score is NaN.
    """
    assert k >= 1, k
    users, known = len(users_UD), known.ordered()
    best = (users_UD.new_full((users, k), -torch.inf), torch.full((users, k), NO_ITEM, device=users_UD.device))
    done, total = 0, users * (partition.rows if candidates is None else int(candidates.sum()))
    for block_VD, ids_V, masked in _item_blocks(own_items_VD, known, partition, exchange, candidates):
        for start in range(0, users, _USERS):
            rows = slice(start, min(start + _USERS, users))
            lists = best[0][rows], best[1][rows]
            add_block(lists, users_UD[rows], block_VD, ids_V, masked.of_rows(rows))
            done += (rows.stop - rows.start) * len(ids_V)
            progress(done / total)
    return best[0].cpu(), best[1].cpu()


def _item_blocks(
    own_items_VD: Tensor,
    known: UserItemPairs,
    partition: Partition,
    exchange: Exchange,
    candidates: np.ndarray | None,
) -> Iterator[tuple[Tensor, Tensor, UserItemPairs]]:
    """Yield (representations, ids, known pairs with indices into them) of blocks of all workers' items. Collective."""
    alone = partition.workers == 1  # a row's local index is the row
    owner, local = (None, known.item) if alone else (partition.owner(known.item), partition.local(known.item))
    for worker in range(partition.workers):
        ids, shard_known = partition.rows_of(worker), UserItemPairs(known.row, local)
        if owner is not None:
            shard_known = shard_known.select(owner == worker)
        if candidates is not None:
            chosen = candidates[ids]
            ids, shard_known = ids[chosen], shard_known.within(chosen)
            if worker == exchange.rank:
                own_items_VD = own_items_VD[torch.from_numpy(chosen).to(own_items_VD.device)]
        ids_V = torch.from_numpy(ids).to(own_items_VD.device)
        for first in range(0, len(ids_V), _BLOCK_ITEMS):
            last = min(first + _BLOCK_ITEMS, len(ids_V))
            block_VD = own_items_VD.new_empty(last - first, own_items_VD.shape[1])
            if worker == exchange.rank:
                block_VD = own_items_VD[first:last].contiguous()
            exchange.broadcast(block_VD, worker)
            if last - first < len(ids_V):
                inside = (shard_known.item >= first) & (shard_known.item < last)
                yield block_VD, ids_V[first:last], shard_known.select(inside, first)
            else:
                yield block_VD, ids_V, shard_known


@torch.no_grad()
def rank_scores(
    scorer: Scorer,
    users: np.ndarray,
    known: UserItemPairs,
    items: int,
    exchange: Exchange,
    k: int,
    candidates: np.ndarray | None = None,
    progress: Progress = lambda share: None,
) -> tuple[Tensor, Tensor]:
    """Return the top-K items of each user by the scores of a scorer; arguments and result otherwise as of `rank`.

    Args:
        scorer: gives the scores. All workers call it for the same items, some maybe without users.
        users: local indices of this worker's users.
        items: items of the catalogue.
    """
    known, ids = known.ordered().within(candidates), np.arange(items)
    if candidates is not None:
        ids = ids[candidates]
    width = max(1, min(_BLOCK_ITEMS, len(ids)))
    size = max(1, _SCORES["cpu"] // width)
    longest = int(exchange.all_max(torch.tensor([len(users)], device=exchange.device)))
    ranked = torch.empty(len(users), k), torch.empty(len(users), k, dtype=torch.int64)
    for start in range(0, longest, size):
        rows = slice(min(start, len(users)), min(start + size, len(users)))
        best = topk_block(torch.empty(rows.stop - rows.start, 0), torch.empty(0, dtype=torch.int64), k)
        known_rows = known.of_rows(rows)
        for first in range(0, len(ids), width):
            ids_V = ids[first : first + width]
            tile_UV = torch.empty(rows.stop - rows.start, len(ids_V))
            scorer.scores(users[rows], ids_V, tile_UV)
            inside = (known_rows.item >= first) & (known_rows.item < first + width)
            tile_UV[known_rows.row[inside], known_rows.item[inside] - first] = -torch.inf
            best = merge_topk(best, topk_block(tile_UV, torch.from_numpy(ids_V), k), k)
        ranked[0][rows], ranked[1][rows] = best
        progress(min(1.0, (start + size) / longest))
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
    (scores_UK, ids_UK), users = best, len(users_UD)
    size = max(1, _SCORES["cuda" if users_UD.is_cuda else "cpu"] // max(1, len(ids_V)))
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
