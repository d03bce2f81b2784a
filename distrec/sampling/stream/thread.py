"""Batches computed ahead of their trainer by a thread of the same process."""

import os
import queue
import sys
import threading
from collections.abc import Iterator

from distrec.sampling.batch import Batch
from distrec.sampling.stream.blocks import EpochBlocks, Source

THREAD_NAME = "batches"
_MAX_QUEUED = 4  # blocks; handing one over takes no time, so that more would only occupy memory
_POLL_S = 0.1  # interval at which a full queue is checked for the end of the stream
_LOWEST_PRIORITY = 19


def thread_batches(source: Source, blocks: EpochBlocks, block_range: range, look_ahead: int) -> Iterator[Batch]:
    """Yield the batches of a range of blocks, computed by a daemon thread at most `look_ahead` blocks ahead.

    An error of the source is raised here. The thread ends with the iterator.
    """
    ready: queue.Queue[list[Batch] | BaseException] = queue.Queue(min(max(1, look_ahead), _MAX_QUEUED))
    stopped = threading.Event()

    def put(block: list[Batch] | BaseException) -> None:
        while not stopped.is_set():
            try:
                return ready.put(block, timeout=_POLL_S)
            except queue.Full:
                pass

    def compute() -> None:
        _lower_priority()
        try:
            for block in block_range:
                if stopped.is_set():
                    return
                put(source.batches(*blocks.steps_of(block)))
        except BaseException as error:
            put(error)

    threading.Thread(target=compute, daemon=True, name=THREAD_NAME).start()
    try:
        for _ in block_range:
            block = ready.get()
            if isinstance(block, BaseException):
                raise block
            yield from block
    finally:
        stopped.set()


def _lower_priority() -> None:
    """Give the calling thread the lowest priority.

    Where the thread shares a core with its trainer, it then runs while the trainer waits for the other workers, and
    does not delay the trainer (and with it all others).
    """
    if sys.platform == "linux":  # elsewhere a thread has no priority of its own
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _LOWEST_PRIORITY)
