"""The items of all workers at each worker, for steps that stay on GPUs: gathered before, gradients returned after.

Buffers have fixed sizes, so that no worker waits for its GPU to learn how much it sends or receives. What moves is the
whole table, however few items a step uses: for catalogues of up to some 100,000 items.
"""

from collections.abc import Mapping
from functools import reduce

import torch
from torch import Tensor

from distrec.sharding.collectives import Exchange
from distrec.sharding.partition import Partition


class GatheredItems:
    """The item tables of all workers during a step. All workers must make the same calls in the same order.

    `gather` and `return_gradients` are collective; between them the other methods only copy on the device.

    Args:
        exchange: the collectives of the group.
        partition: of the items.
        widths: columns of each item table, by name.
    """

    def __init__(self, exchange: Exchange, partition: Partition, widths: Mapping[str, int]) -> None:
        self._exchange, self._widths, device = exchange, dict(widths), exchange.device
        workers, columns = exchange.workers, sum(widths.values())
        self._sizes = [partition.size(worker) for worker in range(workers)]
        self._ids = [torch.from_numpy(partition.rows_of(worker)).to(device) for worker in range(workers)]
        # Each worker's rows are padded to those of the first, which has the most; gradients have a column of uses.
        self._own = torch.zeros(self._sizes[0] * columns, device=device)
        self._all = torch.empty(workers * len(self._own), device=device)
        self._splits = [size * (columns + 1) for size in self._sizes]
        self._sent = torch.empty(sum(self._splits), device=device)
        self._received = torch.empty(workers * self._splits[exchange.rank], device=device)

    def describe(self) -> str:
        """Return what is exchanged, for the log."""
        sent = 4 * (len(self._own) * (len(self._sizes) - 1) + len(self._sent) - self._splits[self._exchange.rank])
        return f"between which a worker sends {sent / 1e6:,.3g} MB of items and gradients"

    def put(self, rows: Mapping[str, Tensor]) -> None:
        """Take the present rows of this worker's items, (V_w, D) by table."""
        for name, part in self._tables(self._own, self._sizes[self._exchange.rank]).items():
            part.copy_(rows[name])

    def gather(self) -> None:
        """Send the rows of `put` to all workers."""
        self._exchange.gather_into(self._all, self._own)

    def rows(self) -> dict[str, Tensor]:
        """Return the rows of all items, (V, D) by table, in the order of their ids."""
        found = {name: self._all.new_empty(sum(self._sizes), width) for name, width in self._widths.items()}
        for ids, size, part in zip(self._ids, self._sizes, self._all.chunk(len(self._ids)), strict=True):
            for name, rows in self._tables(part, size).items():
                found[name].index_copy_(0, ids, rows)
        return found

    def put_gradients(self, grads: Mapping[str, Tensor], used_V: Tensor) -> None:
        """Take the gradients of this worker's pairs for all items, (V, D) by table, and which items they use."""
        for ids, size, part in zip(self._ids, self._sizes, torch.split(self._sent, self._splits), strict=True):
            for name, rows in self._tables(part, size).items():
                torch.index_select(grads[name], 0, ids, out=rows)
            part[-size:].copy_(used_V[ids])

    def return_gradients(self) -> None:
        """Send the gradients of `put_gradients` to the owners of the items."""
        received_W = [self._splits[self._exchange.rank]] * len(self._splits)
        self._exchange.all_to_all_into(self._received, self._sent, received_W, self._splits)

    def sums(self) -> tuple[dict[str, Tensor], Tensor]:
        """Return (gradients of this worker's items, (V_w, D) by table, added in the order of the ranks; which are used
        by any worker, (V_w,) bool)."""
        total, size = reduce(torch.add, self._received.chunk(len(self._splits))), self._sizes[self._exchange.rank]
        return self._tables(total, size), total[-size:] > 0

    def _tables(self, part: Tensor, size: int) -> dict[str, Tensor]:
        """Return views of the tables in a worker's part of a buffer: its items one after another, table by table."""
        tables, start = {}, 0
        for name, width in self._widths.items():
            tables[name] = part[start : start + size * width].view(size, width)
            start += size * width
        return tables
