"""Configuration: frozen, typed sections, read from YAML with dotted overrides. A mistake names its path."""

import difflib
import types
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from distrec.errors import UserError


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
        _apply(tree, override)
    return parse(kind, tree, where=f"{path}: " if path else "")


def parse(kind: type[S], tree: dict[str, Any], where: str = "") -> S:
    """Validates a tree of plain values. Raises UserError with one line for each mistake."""
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
    """(dotted key, type, default, help) of every leaf below a section, for `--help` and the docs."""
    for name, field in kind.model_fields.items():
        inner = _section(field.annotation)
        if inner is None:
            shown = (
                str(field.annotation)
                if typing.get_args(field.annotation)
                else getattr(field.annotation, "__name__", "")
            )
            default = "" if field.is_required() else str(field.default)
            yield prefix + name, shown.replace("typing.", ""), default, " ".join((field.description or "").split())
        else:
            yield from describe(inner, f"{prefix}{name}.")


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


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        tree = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.yaml")], n=3)
        hint = f"; nearest in {path.parent}: {', '.join(near)}" if near else ""
        raise UserError(f"no configuration file {path}{hint}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {error}") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not valid YAML: {error}") from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise UserError(f"{path} must hold keys and values, not a {type(tree).__name__}")
    return tree


def _apply(tree: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise UserError(f"an override reads key=value, for example optim.lr=0.01; got {override!r}")
    try:
        value = yaml.safe_load(text)
        value = _number(value)
    except yaml.YAMLError as error:
        raise UserError(f"{key}: {text!r} is not a valid value: {error}") from None
    *path, last = key.split(".")
    for name in path:
        tree = tree.setdefault(name, {})
        if not isinstance(tree, dict):
            raise UserError(f"{key}: {name} is a value, not a section")
    tree[last] = value


def _number(value: Any) -> Any:
    """YAML 1.1 reads 1e-3 as text (it wants 1.0e-3); a user means the number."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


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
    return f"{path}: {message} (got {item['input']!r})"
