"""Batches computed ahead of their trainer by Ray Data.

One execution serves the whole training, because starting one takes seconds.
"""

import ctypes
import sys
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import ray
import ray.data
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from distrec.sampling.arrow import from_table, to_table
from distrec.sampling.batch import Batch
from distrec.sampling.stream.blocks import EpochBlocks, Source
from distrec.sampling.stream.ray_internal import add_scheduler_backoff, open_tables

STREAM_CPUS = 0.5  # logical CPUs of the actors of a stream, which are idle most of the time
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # parameters of mallopt, from <malloc.h>


class _BatchActor:
    """An actor that holds the data and maps block indices to blocks."""

    def __init__(self, source: Source, blocks: EpochBlocks) -> None:
        self.source, self.blocks = source, blocks
        _keep_freed_memory()

    def __call__(self, rows: dict[str, np.ndarray]) -> Iterator[pa.Table]:
        for block in rows["item"]:
            yield to_table(self.source.batches(*self.blocks.steps_of(int(block))))


def _keep_freed_memory() -> None:
    """Let the C library of this process keep freed memory.

    Each block would otherwise fault its pages in again, which takes a considerable part of the time of making it.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:  # only glibc's has an effect
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
        mallopt(_M_MMAP_THRESHOLD, 2**25)  # the largest value that glibc accepts


def ray_batches(
    source: Source, blocks: EpochBlocks, block_range: range, look_ahead_mib: int, actors: int
) -> Iterator[Batch]:
    """Yield the batches of a range of blocks, computed by `actors` processes; arguments as of `stream`."""
    context = ray.data.DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.execution_options.preserve_order = True
    context.execution_options.resource_limits = context.execution_options.resource_limits.copy(
        object_store_memory=look_ahead_mib * 2**20 * actors
    )
    add_scheduler_backoff(context)
    with ray.data.DataContext.current(context):
        # From items, which lie in the object store already: `ray.data.range` would start tasks of its own.
        dataset = ray.data.from_items(list(block_range), override_num_blocks=len(block_range)).map_batches(
            _BatchActor,
            fn_constructor_args=(source, blocks),
            batch_size=None,
            compute=ray.data.ActorPoolStrategy(size=actors),
            num_cpus=STREAM_CPUS / actors,
            # On the trainer's node, so that batches do not cross the network; elsewhere if it has no room.
            scheduling_strategy=NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True),
        )
        with open_tables(dataset) as tables:
            for table in tables:
                yield from from_table(table)
