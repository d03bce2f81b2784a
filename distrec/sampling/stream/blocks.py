"""Blocks of a stream: runs of consecutive steps of one epoch, numbered through all epochs."""

from dataclasses import dataclass
from typing import Protocol

from distrec.sampling.batch import Batch


class Source(Protocol):
    """A pure function from (epoch, steps) to batches."""

    @property
    def steps(self) -> int:
        """Steps of an epoch."""

    def batches(self, epoch: int, first: int, last: int) -> list[Batch]:
        """Return the batches of steps `first` .. `last` (exclusive) of an epoch."""


@dataclass(frozen=True)
class EpochBlocks:
    """The division of each epoch of `steps` steps into blocks of at most `size` steps."""

    steps: int
    size: int

    @property
    def per_epoch(self) -> int:
        """Blocks of an epoch."""
        return -(-self.steps // self.size)

    def steps_of(self, block: int) -> tuple[int, int, int]:
        """Return (epoch, first step, step after the last) of a block."""
        epoch, k = divmod(block, self.per_epoch)
        return epoch, k * self.size, min((k + 1) * self.size, self.steps)
