"""Configuration: frozen, typed sections, read from YAML with dotted overrides. Errors name the dotted key."""

import difflib
import types
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.fields import FieldInfo

from distrec.core.errors import UserError


class Section(BaseModel):
    """Base of every configuration section. The docstring under a field is its help text."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, validate_default=True, allow_inf_nan=False
    )


S = TypeVar("S", bound=Section)


def load(kind: type[S], path: Path | None, overrides: Sequence[str] = ()) -> S:
    """Read a configuration.

    Args:
        kind: section class of the whole configuration.
        path: YAML file with the values that differ from the defaults; None for the defaults alone.
        overrides: `dotted.key=value` strings, where the value is YAML; later ones take precedence.

    Raises:
        UserError: a missing or invalid file, an unknown key (with the nearest known ones), an invalid value.
    """
    tree = {} if path is None else _read_yaml(path)
    for override in overrides:
        _apply_override(kind, tree, override)
    return parse(kind, tree, where=f"{path}: " if path else "")


def parse(kind: type[S], tree: dict[str, Any], where: str = "") -> S:
    """Validate a tree of plain values. Raises UserError with one line for each error."""
    for name, value in tree.items():
        field = kind.model_fields.get(name)
        if field is not None and _section(field.annotation) and not isinstance(value, (dict, Section)):
            raise UserError(f"{where}{name} is a section: give its keys, {name}.KEY=...; got {value!r}")
    if unknown := list(_unknown(kind, tree)):
        known = list(keys(kind))
        raise UserError("\n".join(f"{where}{_unknown_key(key, known)}" for key in unknown))
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        raise UserError("\n".join(f"{where}{_explain(item)}" for item in error.errors())) from None


def keys(kind: type[Section]) -> Iterator[str]:
    """Yield the dotted key of every field below a section, those of nested sections included."""
    return (key for key, _ in _fields(kind))


def describe(kind: type[Section]) -> Iterator[tuple[str, str, str, str]]:
    """Yield (dotted key, type, default, help text) of every field below a section."""
    for key, field in _fields(kind):
        yield key, _type_name(field.annotation), _to_yaml(field.default), " ".join((field.description or "").split())


def _fields(kind: type[Section], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    for name, field in kind.model_fields.items():
        inner = _section(field.annotation)
        if inner is None:
            yield prefix + name, field
        else:
            yield from _fields(inner, f"{prefix}{name}.")


def _type_name(annotation: Any) -> str:
    """Return a type as shown in help texts: `auto | cpu | cuda`, `path or null`, `list of int`."""
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


def _to_yaml(value: Any) -> str:
    """Return a default value as YAML, in one line."""
    plain = str(value) if isinstance(value, Path) else list(value) if isinstance(value, tuple) else value
    return str(yaml.safe_dump(plain, default_flow_style=True)).split("\n")[0]


def flat(config: Section, prefix: str = "") -> dict[str, Any]:
    """Return {dotted key: plain value} of a configuration."""
    leaves: dict[str, Any] = {}
    for name, value in config:
        if isinstance(value, Section):
            leaves |= flat(value, f"{prefix}{name}.")
        else:
            leaves[prefix + name] = str(value) if isinstance(value, Path) else value
    return leaves


def dump(config: Section) -> str:
    """Return the complete configuration as YAML, in the order of its fields."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


class _Loader(yaml.SafeLoader):
    """A YAML loader that rejects repeated keys, of which the base class silently keeps the last."""

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
        raise UserError(f"{path} is empty; omit it to train with the defaults")
    if not isinstance(tree, dict):
        raise UserError(f"{path} is not a configuration file: it must contain keys and values")
    if dotted := [key for key in tree if "." in str(key)]:
        section, _, rest = str(dotted[0]).partition(".")
        raise UserError(f"{path}: write {dotted[0]} as {section}: {{{rest}: ...}} in a file")
    return {name: {} if value is None else value for name, value in tree.items()}


def _apply_override(kind: type[Section], tree: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise UserError(f"an override must have the form key=value, for example optim.lr=0.01; got {override!r}")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"{key}: {text!r} is not a valid value: {error}") from None
    *path, last = key.split(".")
    for name in path:
        tree = tree.setdefault(name, {})
        if not isinstance(tree, dict):
            raise UserError(f"{key}: {name} is a value, not a section")
    # A column named 2024 is text, which YAML would parse as a number.
    tree[last] = text if _is_text(kind, key) and value is not None and not isinstance(value, str) else value


def _is_text(kind: type[Section], key: str) -> bool:
    """Return whether the field of a dotted key exists and holds text or a path."""
    field = dict(_fields(kind)).get(key)
    return field is not None and bool({str, Path} & {field.annotation, *typing.get_args(field.annotation)})


def _section(annotation: Any) -> type[Section] | None:
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return None
    return annotation if isinstance(annotation, type) and issubclass(annotation, Section) else None


def _unknown(kind: type[Section] | None, tree: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """Yield the dotted keys of a tree that name no field of the section (None: a section without fields)."""
    fields = kind.model_fields if kind else {}
    for name, value in tree.items():
        inner = _section(fields[name].annotation) if name in fields else None
        if isinstance(value, dict) and value and (inner or name not in fields):
            yield from _unknown(inner, value, f"{prefix}{name}.")
        elif name not in fields:
            yield f"{prefix}{name}"


def _unknown_key(key: str, known: list[str]) -> str:
    """Return the message for an unknown key: similar known keys, or else all keys of its section."""
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
    """Return the message for one of pydantic's errors."""
    path = ".".join(str(part) for part in item["loc"]) or "configuration"
    message = item["msg"].removeprefix("Value error, ")
    if item["type"] == "value_error":
        return f"{path}: {message}" if item["loc"] else message
    return f"{path}: {message}" if item["type"] == "missing" else f"{path}: {message} (got {item['input']!r})"
