"""Batches computed ahead of their trainer by a thread of the same process."""

import os
import sys
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from distrec.sampling.batch import Batch
from distrec.sampling.stream.blocks import EpochBlocks, Source

THREAD_NAME = "batches"
"""Start of the name of the thread."""
_MAX_QUEUED = 4  # blocks; handing one over takes no time, so that more would only occupy memory
_LOWEST_PRIORITY = 19


def thread_batches(source: Source, blocks: EpochBlocks, block_range: range, look_ahead: int) -> Iterator[Batch]:
    """Yield the batches of a range of blocks, computed by a thread at most `look_ahead` blocks ahead.

    An error of the source is raised here. The thread ends with the iterator.
    """
    executor = ThreadPoolExecutor(1, THREAD_NAME, _lower_priority)
    queued: deque[Future[list[Batch]]] = deque()
    try:
        for block in block_range:
            queued.append(executor.submit(source.batches, *blocks.steps_of(block)))
            if len(queued) > min(max(1, look_ahead), _MAX_QUEUED):
                yield from queued.popleft().result()
        while queued:
            yield from queued.popleft().result()
    finally:
        executor.shutdown(wait=False, cancel_futures=True)


def _lower_priority() -> None:
    """Give the calling thread the lowest priority.

    Where the thread shares a core with its trainer, it then runs while the trainer waits for the other workers, and
    does not delay the trainer (and with it all others).
    """
    if sys.platform == "linux":  # elsewhere a thread has no priority of its own
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _LOWEST_PRIORITY)
