"""The rivals' end of the conversation: a line on standard input asks for one repetition, a line of JSON answers.

So the benchmark can take turns between rivals, and each keeps its data and its state. No other module of this folder
is shared, and none imports distrec: the rivals live in an environment without it.
"""

import importlib.metadata
import json
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any


def serve(start: Callable[[], Callable[[], dict[str, Any]]], packages: Sequence[str]) -> None:
    """Calls `start` once, which prepares and gives what to repeat; answers until standard input ends.

    The first line that is written holds the versions of `packages`.
    """
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what a rival prints is not an answer
    repeat = start()
    answers.write(json.dumps({name: importlib.metadata.version(name) for name in packages}) + "\n")
    for _ in sys.stdin:
        answers.write(json.dumps(repeat()) + "\n")
