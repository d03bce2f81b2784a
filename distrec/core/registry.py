"""Named parts of one family (losses, models, optimizer rules, metrics), found by the configuration."""

from collections.abc import Callable
from typing import TypeVar

from distrec.core.errors import UserError

T = TypeVar("T")


class Registry(dict[str, T]):
    """A mapping from names to the parts of one family. `kind` is the name of the family in error messages."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def register(self, name: str) -> Callable[[T], T]:
        """Return a decorator that registers a part under `name`."""

        def add(part: T) -> T:
            assert name not in self, f"{self.kind} {name!r} is registered twice"
            self[name] = part
            return part

        return add

    def __missing__(self, name: str) -> T:
        raise UserError(f"unknown {self.kind} {name!r}; known: {', '.join(sorted(self))}")
