"""Named parts of one family (losses, models, optimizer rules, metrics), found by the configuration."""

import importlib
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

from distrec.core.errors import UserError

T = TypeVar("T")


class Registry(dict[str, T]):
    """A mapping from names to the parts of one family. `kind` is the name of the family in error messages."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def register(self, name: str) -> Callable[[T], T]:
        """Return a decorator that registers a part under `name`. A class gets it as its attribute `name`."""

        def add(part: T) -> T:
            assert name not in self, f"{self.kind} {name!r} is registered twice"
            if isinstance(part, type):
                part.name = name  # type: ignore[attr-defined]
            self[name] = part
            return part

        return add

    def __missing__(self, name: str) -> T:
        raise UserError(f"unknown {self.kind} {name!r}; known: {', '.join(sorted(self))}")


def import_modules(names: Iterable[str]) -> None:
    """Import modules of the user's, which register parts. The current folder is importable, as with `python -m`.

    Raises:
        UserError: a module cannot be imported.
    """
    for name in names:
        if not {"", str(Path.cwd())} & set(sys.path):
            sys.path.insert(0, str(Path.cwd()))
        try:
            importlib.import_module(name)
        except Exception as error:
            raise UserError(f"run.imports: cannot import {name}: {type(error).__name__}: {error}") from error
