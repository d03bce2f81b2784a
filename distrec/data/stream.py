"""Ray Data as the pump: one execution for the whole training computes the batches of one worker ahead of its trainer.

Starting an execution costs seconds, so a stream spans all epochs. A block is a run of consecutive steps of one epoch,
large enough that Ray's cost for a block is small beside its contents.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pyarrow as pa
import ray
import ray.data
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from distrec.batch import Batch, from_table, to_table

_BLOCK_BYTES = 8 * 2**20
STREAM_CPUS = 0.5  # logical, for the one actor of a stream: it is idle most of the time


class Source(Protocol):
    """What makes the batches: a pure function of (epoch, step)."""

    @property
    def steps(self) -> int: ...

    def batches(self, epoch: int, first: int, last: int) -> list[Batch]: ...


@dataclass(frozen=True)
class Chunks:
    """The blocks of a training: every epoch is cut into `per_epoch` runs of at most `size` steps."""

    steps: int
    size: int

    @property
    def per_epoch(self) -> int:
        return -(-self.steps // self.size)

    def steps_of(self, chunk: int) -> tuple[int, int, int]:
        """(epoch, first step, step after the last) of a chunk, numbered through all epochs."""
        epoch, k = divmod(chunk, self.per_epoch)
        return epoch, k * self.size, min((k + 1) * self.size, self.steps)


class _Pump:
    """The actor of a stream: holds the data, turns chunk numbers into blocks."""

    def __init__(self, source: Source, chunks: Chunks) -> None:
        self.source, self.chunks = source, chunks

    def __call__(self, rows: dict[str, np.ndarray]) -> Iterator[pa.Table]:
        for chunk in rows["item"]:
            yield to_table(self.source.batches(*self.chunks.steps_of(int(chunk))))


def stream(source: Source, first_epoch: int, epochs: int, bytes_per_step: int, look_ahead_mib: int) -> Iterator[Batch]:
    """Batches of epochs `first_epoch` .. `epochs` (exclusive), in order.

    Args:
        source: picklable; each call with the same arguments must give the same batches.
        bytes_per_step: rough size of a step, which decides how many make a block.
        look_ahead_mib: bound on the blocks computed ahead, MiB.
    """
    chunks = Chunks(source.steps, int(np.clip(_BLOCK_BYTES // max(1, bytes_per_step), 1, source.steps)))
    first, last = first_epoch * chunks.per_epoch, epochs * chunks.per_epoch
    context = ray.data.DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.execution_options.preserve_order = True
    context.execution_options.resource_limits = context.execution_options.resource_limits.copy(
        object_store_memory=look_ahead_mib * 2**20
    )
    with ray.data.DataContext.current(context):
        # Numbers that lie in the object store already: `ray.data.range` would start tasks of its own to make them.
        numbers = ray.data.from_items(list(range(first, last)), override_num_blocks=last - first)
        blocks = numbers.map_batches(
            _Pump,
            fn_constructor_args=(source, chunks),
            batch_size=None,
            compute=ray.data.ActorPoolStrategy(size=1),
            num_cpus=STREAM_CPUS,
            # Beside its trainer, so that batches do not travel; elsewhere if there is no room.
            scheduling_strategy=NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True),
        )
        for table in blocks.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=1):
            yield from from_table(table)
