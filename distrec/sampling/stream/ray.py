"""The batches of one worker, computed ahead of its trainer: by Ray Data, or by a thread of the worker.

With Ray Data one execution serves the whole training, as starting one costs seconds. A block is a run of consecutive
steps of one epoch, large enough that the cost for a block is small beside its contents.
"""

import ctypes
import os
import queue
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pyarrow as pa
import ray
import ray.data
from ray.data._internal.execution.execution_callback import ExecutionCallback
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from distrec.sampling.batch import Batch, from_table, to_table

_BLOCK_BYTES = {"ray": 32 * 2**20, "thread": 2**20}  # a thread hands batches over as they are: few make a block
_STEADY = 4  # blocks that a thread is ahead at most: it hands them over at once, and more would only lie there
_SHORT_S, _REST_S = 0.02, (0.001, 0.01)  # of a scheduler: its short steps, and its rests
_READER, _READER_ENDS_S = "iter_threaded", 10.0  # a thread of Ray Data: its name, and until it ends at last
_LOWEST = 19  # of priorities; Ray starts its workers at 15, and only a privileged user may go back
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # their numbers in <malloc.h>
STREAM_CPUS = 0.5  # logical, for the actors of a stream: they are idle most of the time


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


class _BatchActor:
    """The actor of a stream: holds the data, turns chunk numbers into blocks."""

    def __init__(self, source: Source, chunks: Chunks) -> None:
        self.source, self.chunks = source, chunks
        _keep_memory()

    def __call__(self, rows: dict[str, np.ndarray]) -> Iterator[pa.Table]:
        for chunk in rows["item"]:
            yield to_table(self.source.batches(*self.chunks.steps_of(int(chunk))))


class _SchedulerBackoff(ExecutionCallback):
    """Lets the scheduler of an execution rest, longer each time, while all its steps are short.

    A scheduler that holds finished blocks back, as its consumer has enough, is told of them again at once, and looks at
    them for ever. It runs in the process of the trainer and keeps the lock of the interpreter from it: steps of BPR
    took 35 ms, and 12 as soon as the last block was made.
    """

    def before_execution_starts(self, executor: object) -> None:
        self._rest_s, self._began = 0.0, time.perf_counter()

    def on_execution_step(self, executor: object) -> None:
        waited = time.perf_counter() - self._began > _SHORT_S  # for a block, and nobody was kept from anything
        self._rest_s = 0.0 if waited else min(max(_REST_S[0], 2 * self._rest_s), _REST_S[1])
        time.sleep(self._rest_s)
        self._began = time.perf_counter()


def stream(
    source: Source,
    first_epoch: int,
    epochs: int,
    bytes_per_step: int,
    look_ahead_mib: int,
    by: str = "ray",
    actors: int = 1,
) -> Iterator[Batch]:
    """Batches of epochs `first_epoch` .. `epochs` (exclusive), in order.

    Args:
        source: picklable; each call with the same arguments must give the same batches.
        bytes_per_step: rough size of a step, which decides how many make a block.
        look_ahead_mib: bound on the blocks computed ahead, MiB; beside up to three that Ray Data has under way.
        by: who computes them, `ray` (Ray Data, in processes of its own) or `thread` (a thread of this process).
        actors: processes of Ray Data; each looks ahead.
    """
    chunks = Chunks(source.steps, int(np.clip(_BLOCK_BYTES[by] // max(1, bytes_per_step), 1, source.steps)))
    numbers = range(first_epoch * chunks.per_epoch, epochs * chunks.per_epoch)
    if by == "ray":
        return _by_ray(source, chunks, numbers, look_ahead_mib, actors)
    ahead = look_ahead_mib * 2**20 // max(1, chunks.size * bytes_per_step)
    return _by_thread(source, chunks, numbers, min(max(1, ahead), _STEADY))


def _keep_memory() -> None:
    """Has the C library of this process keep what is freed: blocks come and go, and to take their pages from the system
    anew for each of them is a good part of the work."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:  # only glibc's does something
        mallopt(_TRIM_THRESHOLD, 2**31 - 1)
        mallopt(_MMAP_THRESHOLD, 2**25)  # as high as it goes


def _by_thread(source: Source, chunks: Chunks, numbers: range, ahead: int) -> Iterator[Batch]:
    blocks: queue.Queue[list[Batch] | BaseException] = queue.Queue(ahead)
    stopped = threading.Event()

    def put(block: list[Batch] | BaseException) -> None:
        while not stopped.is_set():
            try:
                return blocks.put(block, timeout=0.1)
            except queue.Full:
                pass

    def compute() -> None:
        _yield_to_others()
        try:
            for chunk in numbers:
                if stopped.is_set():
                    return
                put(source.batches(*chunks.steps_of(chunk)))
        except BaseException as error:
            put(error)

    threading.Thread(target=compute, daemon=True, name="batches").start()
    try:
        for _ in numbers:
            block = blocks.get()
            if isinstance(block, BaseException):
                raise block
            yield from block
    finally:
        stopped.set()


def _yield_to_others() -> None:
    """Gives this thread the lowest priority: where it shares a core with its trainer, it works while that waits for the
    other workers, and does not make them wait in turn."""
    if sys.platform == "linux":  # elsewhere a thread has no priority of its own
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _LOWEST)


def _by_ray(source: Source, chunks: Chunks, numbers: range, look_ahead_mib: int, actors: int) -> Iterator[Batch]:
    context = ray.data.DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.execution_options.preserve_order = True
    context.custom_execution_callback_classes = [*context.custom_execution_callback_classes, _SchedulerBackoff]
    context.execution_options.resource_limits = context.execution_options.resource_limits.copy(
        object_store_memory=look_ahead_mib * 2**20 * actors
    )
    with ray.data.DataContext.current(context):
        # Numbers that lie in the object store already: `ray.data.range` would start tasks of its own to make them.
        wanted = ray.data.from_items(list(numbers), override_num_blocks=len(numbers))
        blocks = wanted.map_batches(
            _BatchActor,
            fn_constructor_args=(source, chunks),
            batch_size=None,
            compute=ray.data.ActorPoolStrategy(size=actors),
            num_cpus=STREAM_CPUS / actors,
            # Beside its trainer, so that batches do not travel; elsewhere if there is no room.
            scheduling_strategy=NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True),
        )
        running = set(threading.enumerate())
        tables = iter(blocks.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=1))
        try:
            for table in tables:
                yield from from_table(table)
        finally:
            tables.close()
            # Threads of Ray Data, which end a little later: one that outlives its Ray ends the process, with no word.
            for thread in set(threading.enumerate()) - running:
                if thread.name == _READER:
                    thread.join(_READER_ENDS_S)
