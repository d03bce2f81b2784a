"""Which items may be recommended to whom: the catalogue with its restrictions, and the items that users have seen."""

from collections.abc import Iterable, Sequence
from typing import Any, Literal

import numpy as np

from distrec.core.errors import UserError
from distrec.data.dataset import Dataset, Part
from distrec.evaluation.ranking import UserItemPairs
from distrec.serve.ids import UNKNOWN, Ids, as_list

Seen = Literal["all", "train", "none"]
"""Items of a user that are left out: those of all parts of the data, those of the training part, or none."""

NO_PAIRS = UserItemPairs(np.empty(0, np.int64), np.empty(0, np.int64))

PARTS: dict[Seen, tuple[Part, ...]] = {"all": tuple(Part), "train": (Part.TRAIN,), "none": ()}


def candidates(
    trained_V: np.ndarray | None, known: Ids, items: Sequence[Any] | None, exclude: Sequence[Any] | None
) -> np.ndarray | None:
    """Return which items are ranked, (items,) bool; None: all.

    Args:
        trained_V: items with training interactions, to which the ranking is restricted; None: it is not.
        known: ids of the catalogue.
        items: ids of the items to rank; None: all.
        exclude: ids of items to leave out. Unknown ones have no effect.

    Raises:
        UserError: an item to rank is unknown.
    """
    chosen_V = np.ones(len(known), bool) if trained_V is None else trained_V.copy()
    if items is not None:
        ids = as_list(items)
        codes = known.codes(ids)
        if len(codes) and (codes == UNKNOWN).all():
            raise UserError(f"none of the {len(ids):,} items to choose from is in the data; the first is {ids[0]!r}")
        within_V = np.zeros(len(known), bool)
        within_V[codes[codes != UNKNOWN]] = True
        chosen_V &= within_V
    if exclude is not None:
        codes = known.codes(as_list(exclude))
        chosen_V[codes[codes != UNKNOWN]] = False
    return None if chosen_V.all() else chosen_V


def pairs_of(rows: Iterable[tuple[np.ndarray, np.ndarray]]) -> UserItemPairs:
    """Return the distinct pairs of some (rows, items), ordered by both."""
    columns = [np.concatenate([np.empty(0, np.int64), *parts]) for parts in zip(*rows, strict=True)]
    row, item = columns if columns else (np.empty(0, np.int64), np.empty(0, np.int64))
    order = np.lexsort((item, row))
    row, item = row[order], item[order]
    first = np.ones(len(row), bool)
    first[1:] = (row[1:] != row[:-1]) | (item[1:] != item[:-1])
    return UserItemPairs(row[first], item[first])


class SeenItems:
    """Interactions of users, read from their buckets when first needed."""

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset
        self._read: dict[tuple[Part, int], tuple[np.ndarray, np.ndarray]] = {}

    def of(self, users: np.ndarray, seen: Seen) -> UserItemPairs:
        """Return the pairs of some users (codes, ascending), with rows that index these."""
        if seen not in PARTS:
            raise UserError(f"unknown seen={seen!r}; known: {', '.join(PARTS)}")
        found = []
        for bucket in np.unique(users % self._dataset.manifest.buckets).tolist():
            for part in PARTS[seen]:
                user, item = self._bucket(part, bucket)  # ordered by user
                ends = users[[0, -1]].astype(user.dtype)
                between = slice(np.searchsorted(user, ends[0]), np.searchsorted(user, ends[1], "right"))
                user, item = user[between], item[between]
                row = np.searchsorted(users, user).clip(max=len(users) - 1)
                kept = users[row] == user
                found.append((row[kept], item[kept].astype(np.int64)))
        return pairs_of(found)

    def _bucket(self, part: Part, bucket: int) -> tuple[np.ndarray, np.ndarray]:
        if (part, bucket) not in self._read:
            self._read[part, bucket] = self._dataset.interactions(part, [bucket])
        return self._read[part, bucket]
