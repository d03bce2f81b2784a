"""A rival in a process and an environment of its own, which answers when asked: see `rivals/serve.py`."""

import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from distrec.core.errors import UserError


class Rival:
    """Starts with the block and ends with it. `versions` names what it runs on."""

    def __init__(self, python: Path, script: Path, words: Sequence[str]) -> None:
        self._command = [str(python), "-W", "ignore", str(script), *words]
        self._folder = Path(words[0])
        self.versions: dict[str, str] = {}

    def __enter__(self) -> "Rival":
        # implicit wants one BLAS thread beside its own; the others bring their own way to count threads.
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        environment["OPENBLAS_NUM_THREADS"] = "1"
        with (self._folder / "rival.log").open("a") as log:
            self._process = subprocess.Popen(
                self._command,
                cwd=self._folder,
                env=environment,
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
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait(60)

    def seconds(self) -> float:
        """Of one more repetition."""
        self._process.stdin.write("\n")
        return float(self._answer()["seconds"])

    def _answer(self) -> dict[str, Any]:
        line = self._process.stdout.readline()
        if not line:
            tail = (self._folder / "rival.log").read_text()[-2000:]
            raise UserError(f"{self._command[-2]} ended early:\n{tail}")
        return json.loads(line)
