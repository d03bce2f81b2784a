"""Calls in a thread: their outcome, and waiting for them through a Ctrl-C."""

import signal
import threading
from concurrent.futures import wait

import pytest

from distrec.core.background import in_background


def test_outcome():
    assert in_background(lambda: 3, "three").result(10) == 3
    with pytest.raises(ZeroDivisionError):
        in_background(lambda: 1 // 0, "fails").result(10)


@pytest.mark.timeout(60)
def test_a_call_goes_on_after_an_interrupted_wait():
    """`Thread.join` would return at once from then on, and what the call uses would be taken down under it."""
    go_on, main = threading.Event(), threading.main_thread().ident
    call = in_background(lambda: go_on.wait(30), "waits")
    before = signal.signal(signal.SIGUSR1, signal.default_int_handler)
    try:
        threading.Timer(0.2, lambda: signal.pthread_kill(main, signal.SIGUSR1)).start()
        with pytest.raises(KeyboardInterrupt):
            wait([call], 20)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert not wait([call], 0.2).done
    go_on.set()
    assert call.result(10) is True
