"""Everything that depends on internals of Ray. Written for ray >=2.60,<2.61.

`ExecutionCallback` is imported from `ray.data._internal`, others from `ray._private`. Not documented either: that
`iter_batches` returns a generator, the name of the thread that it starts, and the attributes that hold the errors of
workers. Check all before raising the upper bound of ray.
"""

import contextlib
import threading
import time
from collections.abc import Generator, Iterator
from typing import cast

import pyarrow as pa
import ray.data
from ray._private import auto_init_hook
from ray._private.services import get_ray_address_from_environment
from ray.data._internal.execution.execution_callback import ExecutionCallback

_SHORT_STEP_S = 0.02  # steps of the scheduler below this are followed by a pause
_PAUSE_S = (0.001, 0.01)  # shortest and longest pause
_READER_THREAD, _JOIN_S = "iter_threaded", 10.0  # the thread of `iter_batches`, and the time allowed for its end


class _SchedulerBackoff(ExecutionCallback):
    """Back-off for the scheduler of an execution: pauses, doubled each time, while all its steps are short.

    A scheduler whose consumer has enough blocks polls its finished tasks without a pause. It runs in the process of the
    trainer and contends for the interpreter lock: steps of BPR took 35 ms, and 12 as soon as the last block was made.
    """

    def before_execution_starts(self, executor: object) -> None:
        self._pause_s, self._started = 0.0, time.perf_counter()

    def on_execution_step(self, executor: object) -> None:
        blocked = time.perf_counter() - self._started > _SHORT_STEP_S  # waited for a block, without the lock
        self._pause_s = 0.0 if blocked else min(max(_PAUSE_S[0], 2 * self._pause_s), _PAUSE_S[1])
        time.sleep(self._pause_s)
        self._started = time.perf_counter()


def add_scheduler_backoff(context: ray.data.DataContext) -> None:
    """Let executions under this context pause their scheduler while it has nothing to do."""
    context.custom_execution_callback_classes = [*context.custom_execution_callback_classes, _SchedulerBackoff]


@contextlib.contextmanager
def open_tables(dataset: ray.data.Dataset) -> Iterator[Iterator[pa.Table]]:
    """Execute a dataset and iterate over its blocks; on exit stop the execution and join its threads.

    They end a little later than the iterator, and one that outlives `ray.shutdown` ends the process without a message.
    """
    running = set(threading.enumerate())
    batches = dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=1)
    tables = cast(Generator[pa.Table, None, None], iter(batches))
    try:
        yield tables
    finally:
        tables.close()
        for thread in set(threading.enumerate()) - running:
            if thread.name == _READER_THREAD:
                thread.join(_JOIN_S)


def find_local_address() -> str | None:
    """Return the address of the Ray that RAY_ADDRESS=auto means: the one on this machine that was started last."""
    address: str | None = get_ray_address_from_environment("auto", None)
    return address


def forbid_reconnection() -> None:
    """Let calls of Ray after its shutdown fail: those of a thread that still runs would start another Ray."""
    auto_init_hook.enable_auto_connect = False


def wrapped_errors(error: BaseException) -> list[BaseException]:
    """Return the errors that Ray has wrapped in this one: raised in workers or actors, or as its cause."""
    inner = [getattr(error, name, None) for name in ("__cause__", "cause", "_base_exc", "health_check_failure")]
    inner += getattr(error, "worker_failures", {}).values()
    return [e for e in inner if isinstance(e, BaseException)]
