"""A call in a thread of its own."""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")


def in_background(call: Callable[[], T], name: str) -> Future[T]:
    """Start `call` in a daemon thread, where Ctrl-C does not raise, and return its outcome to come.

    Wait for it with `concurrent.futures.wait`: `Thread.join`, up to Python 3.12, takes a thread for ended when Ctrl-C
    interrupts it. (An executor's threads are not daemons: a process waits for them when it ends.)
    """
    outcome: Future[T] = Future()

    def run() -> None:
        try:
            outcome.set_result(call())
        except BaseException as error:
            outcome.set_exception(error)

    threading.Thread(target=run, daemon=True, name=name).start()
    return outcome
