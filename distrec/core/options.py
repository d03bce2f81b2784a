"""The keys of a configuration, as help texts show them."""

import re
import types
import typing
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from pydantic_core import to_jsonable_python

from distrec.core.section import Section, default_of, family_of, section_of


class Option(NamedTuple):
    """A key of the configuration as help texts show it."""

    key: str
    type: str
    """Empty for the title of a part, such as loss.name=bpr, whose options follow."""
    default: str
    text: str
    depth: int = 0
    """Indentation: 1 for the title of a loss, 2 for its options, 3 for the title of a part within that loss."""

    @property
    def title(self) -> str | None:
        """What names a part, such as loss.name=bpr; None for a key."""
        return None if self.type else f"{self.key}={self.default}"

    def matches(self, word: str) -> bool:
        """Return whether a word is the beginning of the key, its last name, or the title of a part."""
        return self.key.startswith(word) or self.key.rpartition(".")[2] == word or self.title == word


def selected(options: Sequence[Option], words: Collection[str]) -> Iterator[Option]:
    """Yield the options that one of the words names, those of the parts that it names, and the titles above them.

    Without words all are named.
    """
    titles: list[tuple[Option, bool]] = []  # those above an option, outermost first, and whether they were yielded
    for option in options:
        titles = [(title, shown) for title, shown in titles if title.depth < option.depth]
        within = any(title.title in words for title, _ in titles)
        if within or not words or any(option.matches(word) for word in words):
            yield from (title for title, shown in titles if not shown)
            titles = [(title, True) for title, _ in titles]
            yield option
            titles += [] if option.type else [(option, True)]
        elif not option.type:
            titles.append((option, False))


def keys(kind: type[Section]) -> Iterator[str]:
    """Yield the dotted key of every field below a section, those of nested sections and of all parts included."""
    return iter(dict.fromkeys(option.key for option in describe(kind)))


def describe(kind: type[Section]) -> Iterator[Option]:
    """Yield every field below a section; of a family its name, and then each part with its options.

    The parts of a family that several parts of another one use are described once.
    """
    return _describe(kind, "", 0, set())


def _describe(kind: type[Section], prefix: str, depth: int, seen: set[str]) -> Iterator[Option]:
    for name, field in kind.model_fields.items():
        key, family, inner = prefix + name, family_of(field), section_of(field.annotation)
        if inner is not None and family is None:
            yield from _describe(inner, f"{key}.", depth, seen)
            continue
        text, default = " ".join((field.description or "").split()), default_of(field)
        if family is None:
            yield Option(key, _type_name(field.annotation), to_yaml(default), text, depth)
            continue
        yield Option(f"{key}.name", " | ".join(sorted(family)), default.name, text, depth)
        for other, section in sorted(family.items()) if key not in seen else ():
            yield Option(f"{key}.name", "", other, _first_sentence(section), depth + 1)
            yield from _describe(section, f"{key}.", depth + 2, seen)
        seen.add(key)


def _first_sentence(section: type[Section]) -> str:
    text = " ".join((section.__doc__ or "").split("\n\n")[0].split())
    return re.split(r"(?<=\.)\s(?=[A-Z])", text, maxsplit=1)[0]


def _type_name(annotation: Any) -> str:
    """Return a type as shown in help texts: `auto | cpu | cuda`, `path or null`, `list of int`."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Literal:
        return " | ".join(str(a).lower() if isinstance(a, bool) else str(a) for a in arguments)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_type_name(a) for a in arguments)
    if origin is typing.Annotated:
        return _type_name(arguments[0])
    if origin is tuple:
        return f"list of {_type_name(arguments[0])}"
    if origin is dict:
        return f"{_type_name(arguments[1])} by name"
    names = {type(None): "null", Path: "path", str: "text", Any: "value"}
    return names.get(annotation, getattr(annotation, "__name__", ""))


def to_yaml(value: Any) -> str:
    """Return a value as YAML, in one line."""
    plain = to_jsonable_python(value)
    return str(yaml.safe_dump(plain, default_flow_style=True, sort_keys=False, width=10**6)).split("\n")[0]
