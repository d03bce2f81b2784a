"""Typed registries, one for each family of parts (losses, models, rules, ...). An unknown name is an error."""

from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from distrec.core.errors import UserError

T = TypeVar("T")


class Registry(Generic[T]):
    """A mapping from names to the parts of one family. `kind` is the name of the family in error messages."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._parts: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Return a decorator that registers a part under `name`."""

        def add(part: T) -> T:
            assert name not in self._parts, f"{self.kind} {name!r} is registered twice"
            self._parts[name] = part
            return part

        return add

    def __getitem__(self, name: str) -> T:
        if name not in self._parts:
            raise UserError(f"unknown {self.kind} {name!r}; known: {', '.join(sorted(self._parts))}")
        return self._parts[name]

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._parts))
