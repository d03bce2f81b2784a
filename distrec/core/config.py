"""Configuration: frozen, typed sections, read from YAML with dotted overrides. A mistake names its path."""

import difflib
import types
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from distrec.core.errors import UserError


class Section(BaseModel):
    """Base of every configuration section. The docstring under a field is its help text."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, validate_default=True, allow_inf_nan=False
    )


S = TypeVar("S", bound=Section)


def load(kind: type[S], path: Path | None, overrides: Sequence[str] = ()) -> S:
    """Reads a configuration.

    Args:
        kind: the section class of the whole configuration.
        path: a YAML file that names what differs from the defaults; None for the defaults alone.
        overrides: `dotted.key=value` strings; the value is read as YAML. Later ones win.

    Raises:
        UserError: a missing or broken file, an unknown key (with the nearest known ones), a bad value.
    """
    tree = {} if path is None else _read_yaml(path)
    for override in overrides:
        _apply(kind, tree, override)
    return parse(kind, tree, where=f"{path}: " if path else "")


def parse(kind: type[S], tree: dict[str, Any], where: str = "") -> S:
    """Validates a tree of plain values. Raises UserError with one line for each mistake."""
    for name, value in tree.items():
        field = kind.model_fields.get(name)
        if field is not None and _section(field.annotation) and not isinstance(value, (dict, Section)):
            raise UserError(f"{where}{name} is a section: give its keys, {name}.KEY=...; got {value!r}")
    unknown = list(_unknown(kind, tree, ""))
    if unknown:
        known = list(keys(kind))
        raise UserError("\n".join(f"{where}{_unknown_key(key, known)}" for key in unknown))
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        raise UserError("\n".join(f"{where}{_explain(item)}" for item in error.errors())) from None


def keys(kind: type[Section], prefix: str = "") -> Iterator[str]:
    """The dotted keys of every leaf below a section."""
    for name, field in kind.model_fields.items():
        inner = _section(field.annotation)
        if inner is None:
            yield prefix + name
        else:
            yield from keys(inner, f"{prefix}{name}.")


def describe(kind: type[Section], prefix: str = "") -> Iterator[tuple[str, str, str, str]]:
    """(dotted key, type, default, help) of every leaf below a section, for `distrec keys`."""
    for name, field in kind.model_fields.items():
        inner = _section(field.annotation)
        if inner is None:
            yield (
                prefix + name,
                _type_name(field.annotation),
                _plain(field.default),
                " ".join(field.description.split()),
            )
        else:
            yield from describe(inner, f"{prefix}{name}.")


def _type_name(annotation: Any) -> str:
    """A type as a user writes its values: `auto | cpu | cuda`, `path or null`, `list of int`."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Literal:
        return " | ".join(map(str, arguments))
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_type_name(a) for a in arguments)
    if origin is typing.Annotated:
        return _type_name(arguments[0])
    if origin is tuple:
        return f"list of {_type_name(arguments[0])}"
    return {type(None): "null", Path: "path", str: "text"}.get(annotation, getattr(annotation, "__name__", ""))


def _plain(value: Any) -> str:
    """A default as it would stand in a file."""
    return yaml.safe_dump(
        str(value) if isinstance(value, Path) else list(value) if isinstance(value, tuple) else value,
        default_flow_style=True,
    ).split("\n")[0]


def flat(config: Section, prefix: str = "") -> dict[str, Any]:
    """{dotted key: plain value} of a whole configuration."""
    leaves: dict[str, Any] = {}
    for name, value in config:
        if isinstance(value, Section):
            leaves |= flat(value, f"{prefix}{name}.")
        else:
            leaves[prefix + name] = str(value) if isinstance(value, Path) else value
    return leaves


def dump(config: Section) -> str:
    """The complete configuration as YAML, in the order of its fields."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


class _Loader(yaml.SafeLoader):
    """YAML without repeated keys, of which plain YAML would silently keep the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys_seen = [self.construct_object(key, deep=True) for key, _ in node.value]
        if repeated := sorted({str(key) for key in keys_seen if keys_seen.count(key) > 1}):
            raise yaml.constructor.ConstructorError(None, None, f"{', '.join(repeated)} given twice", node.start_mark)
        return super().construct_mapping(node, deep)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        tree = yaml.load(path.read_text(), _Loader)
    except FileNotFoundError:
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.yaml")], n=3)
        hint = f"; nearest in {path.parent}: {', '.join(near)}" if near else ""
        raise UserError(f"no configuration file {path}{hint}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {error}") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not valid YAML: {error}") from None
    if tree is None:
        raise UserError(f"{path} is empty; leave it out to train with the defaults")
    if not isinstance(tree, dict):
        raise UserError(f"{path} is no configuration file: it does not hold keys and values")
    if dotted := [key for key in tree if "." in str(key)]:
        section, _, rest = str(dotted[0]).partition(".")
        raise UserError(f"{path}: {dotted[0]} is written {section}: {{{rest}: ...}} in a file")
    return {name: {} if value is None else value for name, value in tree.items()}


def _apply(kind: type[Section], tree: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise UserError(f"an override reads key=value, for example optim.lr=0.01; got {override!r}")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"{key}: {text!r} is not a valid value: {error}") from None
    *path, last = key.split(".")
    for name in path:
        tree = tree.setdefault(name, {})
        if not isinstance(tree, dict):
            raise UserError(f"{key}: {name} is a value, not a section")
    # A column called 2024 is text; YAML would make it a number.
    tree[last] = text if _takes_text(kind, key) and value is not None and not isinstance(value, str) else value


def _takes_text(kind: type[Section], key: str) -> bool:
    """Whether the field of a dotted key, if there is one, holds text or a path."""
    section, _, rest = key.partition(".")
    field = kind.model_fields.get(section)
    if field is None:
        return False
    if rest:
        inner = _section(field.annotation)
        return inner is not None and _takes_text(inner, rest)
    return bool({str, Path} & {field.annotation, *typing.get_args(field.annotation)})


def _section(annotation: Any) -> type[Section] | None:
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return None
    return annotation if isinstance(annotation, type) and issubclass(annotation, Section) else None


def _unknown(kind: type[Section], tree: dict[str, Any], prefix: str) -> Iterator[str]:
    for name, value in tree.items():
        field = kind.model_fields.get(name)
        if field is None:
            yield from _leaves(value, f"{prefix}{name}")
        elif (inner := _section(field.annotation)) is not None and isinstance(value, dict):
            yield from _unknown(inner, value, f"{prefix}{name}.")


def _leaves(value: Any, key: str) -> Iterator[str]:
    if isinstance(value, dict) and value:
        for name, inner in value.items():
            yield from _leaves(inner, f"{key}.{name}")
    else:
        yield key


def _unknown_key(key: str, known: list[str]) -> str:
    leaf = {k.rsplit(".", 1)[-1]: k for k in known}
    near = difflib.get_close_matches(key, known, n=3, cutoff=0.6)
    near += [
        leaf[m] for m in difflib.get_close_matches(key.rsplit(".", 1)[-1], leaf, n=3, cutoff=0.7) if leaf[m] not in near
    ]
    section = key.rsplit(".", 1)[0] + "." if "." in key else ""
    siblings = [k for k in known if k.startswith(section)] if section else sorted({k.split(".")[0] for k in known})
    hint = f"nearest known: {', '.join(near[:3])}" if near else f"known here: {', '.join(siblings or known)}"
    return f"unknown key {key!r}; {hint}"


def _explain(item: Any) -> str:
    path = ".".join(str(part) for part in item["loc"]) or "configuration"
    message = item["msg"].removeprefix("Value error, ")
    if item["type"] == "value_error":
        return f"{path}: {message}" if item["loc"] else message
    return f"{path}: {message}" if item["type"] == "missing" else f"{path}: {message} (got {item['input']!r})"
