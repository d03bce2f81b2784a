"""The server loop of a rival: for each line on standard input it runs one repetition and answers with a line of JSON.

A benchmark can thus interleave rivals that keep their data and state. The rivals share this module alone, and import
nothing of distrec's benchmarks: most run in an environment without distrec.
"""

import importlib.metadata
import json
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any


def serve(start: Callable[[], Callable[[], dict[str, Any]]], packages: Sequence[str]) -> None:
    """Prepare once, then run repetitions until standard input ends.

    Args:
        start: does the preparation, and returns the function to repeat.
        packages: distributions whose versions the first line of the output lists.
    """
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # keep the output of a rival apart from the answers
    repeat = start()
    answers.write(json.dumps({name: importlib.metadata.version(name) for name in packages}) + "\n")
    for _ in sys.stdin:
        answers.write(json.dumps(repeat()) + "\n")
