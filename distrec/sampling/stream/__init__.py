"""The batches of one worker, computed ahead of its trainer: by Ray Data, or by a thread of the worker.

The unit of the stream is a block of consecutive steps, large enough that the cost for a block is small beside its
contents.
"""

from collections.abc import Iterator

import numpy as np

from distrec.sampling.batch import Batch
from distrec.sampling.stream.blocks import EpochBlocks, Source
from distrec.sampling.stream.thread import thread_batches

_BLOCK_BYTES = {"ray": 32 * 2**20, "thread": 2**20}  # small for the thread, which hands batches over without a copy


def stream(
    source: Source,
    first_epoch: int,
    epochs: int,
    bytes_per_step: int,
    look_ahead_mib: int,
    backend: str = "ray",
    actors: int = 1,
) -> Iterator[Batch]:
    """Return an iterator over the batches of epochs `first_epoch` .. `epochs` (exclusive), in order.

    Args:
        source: picklable; each call with the same arguments must return the same batches.
        first_epoch: first epoch.
        epochs: epoch after the last.
        bytes_per_step: estimated size of a batch, which determines the number of steps of a block.
        look_ahead_mib: bound on the blocks computed ahead, MiB; with Ray Data for each actor, and in addition to up to
            three blocks in transit.
        backend: `ray` (Ray Data, in processes of its own) or `thread` (a thread of this process).
        actors: processes of Ray Data.
    """
    size = int(np.clip(_BLOCK_BYTES[backend] // max(1, bytes_per_step), 1, source.steps))
    blocks = EpochBlocks(source.steps, size)
    block_range = range(first_epoch * blocks.per_epoch, epochs * blocks.per_epoch)
    if backend == "ray":
        from distrec.sampling.stream.ray import ray_batches  # here: the thread backend does not need Ray Data

        return ray_batches(source, blocks, block_range, look_ahead_mib, actors)
    return thread_batches(source, blocks, block_range, look_ahead_mib * 2**20 // max(1, size * bytes_per_step))
