"""Lists of recommended items, as arrays and as a table. Letters: R lists."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from distrec.core import columns
from distrec.evaluation.topk import NO_ITEM
from distrec.serve.ids import Ids

SOURCES = ("model", "popular", "history")
MODEL, POPULAR, HISTORY = range(3)
"""Where the lists come from: index into `SOURCES`."""


@dataclass(frozen=True)
class Lists:
    """Top-K lists, best first."""

    scores_RK: np.ndarray
    codes_RK: np.ndarray
    """Codes of the items, -1 where a list has ended."""
    source_R: np.ndarray | None
    """Where each list comes from, index into `SOURCES`; None for lists that are not recommended."""

    @classmethod
    def of(cls, scores_RK: np.ndarray, codes_RK: np.ndarray) -> "Lists":
        """Return lists without a source."""
        return cls(scores_RK, codes_RK, None)

    @classmethod
    def empty(cls, rows: int, k: int) -> "Lists":
        """Return lists without items."""
        return cls(np.full((rows, k), -np.inf), np.full((rows, k), NO_ITEM), np.zeros(rows, np.int8))

    def set(self, chosen_R: np.ndarray, scores_CK: np.ndarray, codes_CK: np.ndarray, source: int | np.ndarray) -> None:
        """Replace the chosen lists (a mask), and their source."""
        assert self.source_R is not None
        self.scores_RK[chosen_R], self.codes_RK[chosen_R], self.source_R[chosen_R] = scores_CK, codes_CK, source

    def take(self, rows: np.ndarray) -> "Lists":
        """Return some of the lists."""
        return Lists(self.scores_RK[rows], self.codes_RK[rows], None if self.source_R is None else self.source_R[rows])


def list_table(owner: Mapping[str, pa.Array], lists: Lists, ids: Ids, name: str = "item") -> pa.Table:
    """Return a table with a row for each item of each list.

    Args:
        owner: one column: whose list it is, (R,).
        lists: the lists.
        ids: ids of what is listed.
        name: name of the column of these.
    """
    row, rank = np.nonzero(lists.codes_RK != NO_ITEM)
    table = {key: column.take(columns.numeric(row)) for key, column in owner.items()}
    table |= {"rank": columns.numeric((rank + 1).astype(np.int32)), name: ids.of(lists.codes_RK[row, rank])}
    table["score"] = columns.numeric(lists.scores_RK[row, rank].astype(np.float32))
    if lists.source_R is not None:
        source = columns.numeric(lists.source_R[row])
        table["source"] = pa.DictionaryArray.from_arrays(source, columns.texts(SOURCES).cast(pa.string()))
    return pa.table(table)
