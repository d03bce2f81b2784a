"""A typed table of names: one per family of parts (losses, models, rules). Nothing falls back silently."""

from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from distrec.core.errors import UserError

T = TypeVar("T")


class Registry(Generic[T]):
    """Names to parts of one family. `kind` is what the family is called in error messages."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._parts: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator that enters a part under `name`."""

        def enter(part: T) -> T:
            assert name not in self._parts, f"{self.kind} {name!r} is registered twice"
            self._parts[name] = part
            return part

        return enter

    def __getitem__(self, name: str) -> T:
        if name not in self._parts:
            raise UserError(f"unknown {self.kind} {name!r}; known: {', '.join(sorted(self._parts))}")
        return self._parts[name]

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._parts))
