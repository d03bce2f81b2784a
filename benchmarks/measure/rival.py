"""A rival in a process of its own, which runs one repetition on request: the client of `rivals/serve.py`."""

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from distrec.core.errors import UserError
from measure.peak_rss import peak_rss

_RIVALS = Path(__file__).parents[1] / "rivals"


class Rival:
    """A context manager that starts and ends the process. `versions` lists the packages that the rival uses."""

    def __init__(
        self, python: Path, script: Path, arguments: Sequence[str], environment: Mapping[str, str] | None = None
    ) -> None:
        """
        Args:
            python: interpreter of the rival's virtual environment.
            script: a script that calls `serve`.
            arguments: of the script. The first is a folder: its working directory, which also gets its log.
            environment: variables set beside those of this process; PYTHONPATH is not inherited.
        """
        self._command = [str(python), "-W", "ignore", str(script), *arguments]
        self._folder = Path(arguments[0])
        self._environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        self._environment |= environment or {}
        self.versions: dict[str, str] = {}

    def __enter__(self) -> "Rival":
        with (self._folder / "rival.log").open("a") as log:
            self._process = subprocess.Popen(
                self._command,
                cwd=self._folder,
                env=self._environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                bufsize=1,
            )
        self.versions = self._answer()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.communicate(timeout=60)  # closes its standard input, which ends it

    def seconds(self) -> float:
        """Run one more repetition and return its duration."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        return float(self._answer()["seconds"])

    def peak_mib(self) -> float:
        """Return the largest resident memory of the process so far, MiB."""
        return peak_rss(self._process.pid) / 2**20

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            tail = (self._folder / "rival.log").read_text()[-2000:]
            raise UserError(f"{self._command[3]} ended early:\n{tail}")
        answer: dict[str, Any] = json.loads(line)
        return answer


def open_rival(
    python: Path, script: str, arguments: Sequence[str], environment: Mapping[str, str] | None = None
) -> Rival:
    """Return a rival, to be opened by `with`.

    Args:
        python: interpreter of the rival's virtual environment.
        script: name of a script in `rivals/`.
        arguments: of the script, its folder first.
        environment: variables set beside those of this process, and OPENBLAS_NUM_THREADS.
    """
    if not python.exists():
        raise UserError(f"{python} is missing: install the rivals by `make bench`, or name one by --rivals PYTHON")
    # implicit asks for one BLAS thread beside its own; the others do not use OpenBLAS.
    return Rival(python, _RIVALS / script, arguments, {"OPENBLAS_NUM_THREADS": "1", **(environment or {})})
