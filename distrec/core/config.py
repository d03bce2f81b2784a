"""Configurations: read from YAML with dotted overrides, changed and written. Errors name the dotted key."""

import copy
import difflib
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from distrec.core.errors import UserError
from distrec.core.options import describe, keys, to_yaml
from distrec.core.registry import import_modules
from distrec.core.section import Part, Section, default_of, family_of, section_of

S = TypeVar("S", bound=Section)
_OTHER_NAMES = {"learning_rate": "lr", "weight_decay": "strength", "embedding_dim": "dim", "embedding_size": "dim"}
"""Names that other libraries give to keys, for messages."""


def load(
    kind: type[S],
    path: Path | None,
    overrides: Sequence[str] = (),
    note: Callable[[str], object] = warnings.warn,
    values: Mapping[str, Any] | None = None,
) -> S:
    """Read a configuration. Imports the modules that its key `run.imports` names before it is parsed.

    Args:
        kind: section class of the whole configuration.
        path: YAML file with the values that differ from the defaults; None for the defaults alone.
        overrides: `dotted.key=value` strings; later ones take precedence. The value of a text or path is literal, null
            stands for none where the key allows it; other values are YAML. One that names another part than the file
            drops the file's options of the former part.
        note: called with a message for each option so dropped, and for each value that has no effect beside the others.
        values: values by dotted key, between the file and the overrides.

    Raises:
        UserError: a missing or invalid file, an unknown key (with the nearest known ones), an invalid value, a module
            that cannot be imported.
    """
    overridden = [override.partition("=")[0] for override in overrides]
    tree = load_tree(kind, path, overrides, note, values)
    config = parse(kind, tree, f"{path}: " if path else "", elsewhere=overridden)
    used = flat(config)
    for key in given(config):
        if key not in used:
            note(f"{key} has no effect beside the other values")
    return config


def load_tree(
    kind: type[Section],
    path: Path | None,
    overrides: Sequence[str] = (),
    note: Callable[[str], object] = warnings.warn,
    values: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the tree of plain values that `load` parses; arguments and errors as of `load`."""
    tree = {} if path is None else read_yaml(path)
    if values:
        tree = set_values(kind, tree, values, note)
    final = _override(kind, copy.deepcopy(tree), overrides)
    run = final.get("run")
    imports = split_words(run.get("imports")) if isinstance(run, dict) else ()
    if isinstance(imports, (list, tuple)):  # otherwise `parse` reports it
        import_modules(map(str, imports))
    for message in _drop_options(kind, tree, final):
        note(message)
    return _override(kind, tree, overrides)


def set_values(
    kind: type[Section],
    tree: dict[str, Any],
    values: Mapping[str, Any],
    note: Callable[[str], object] = lambda text: None,
) -> dict[str, Any]:
    """Set dotted keys of a tree of plain values, and return it. Drops options of a part that a value replaces."""
    for message in _drop_options(kind, tree, _set(copy.deepcopy(tree), values)):
        note(message)
    return _set(tree, values)


def with_values(config: S, values: Mapping[str, Any]) -> S:
    """Return a configuration with other values of some dotted keys.

    Options of a part that a value replaces (`loss.name`) are dropped. Raises UserError for what `parse` rejects.
    """
    return parse(type(config), tree_with(config, values))


def tree_with(config: Section, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values that were given to a configuration, with others of some dotted keys, as a tree."""
    return set_values(type(config), config.model_dump(mode="json", exclude_unset=True), values)


def _set(tree: dict[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Set dotted keys of a tree in place, and return it."""
    for key, value in values.items():
        *path, last = key.split(".")
        section = tree
        for name in path:
            section = section.setdefault(name, {})
            if not isinstance(section, dict):
                raise UserError(f"{key}: {name} is a value, not a section")
        section[last] = value
    return tree


def value_errors(config: Section, key: str, values: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with one of some values by itself: an unknown key, a wrong type, out of bounds."""
    kind, path = type(config), tuple(key.split("."))
    try:
        kind.model_validate(tree_with(config, values))
    except ValidationError as error:
        found = [item for item in error.errors() if item["loc"][: len(path)] == path or item["type"] == "part"]
        return [text for item in found for _, text in _explain(kind, item) if key in text]
    return []


def key_types(kind: type[Section]) -> dict[str, set[str]]:
    """Return the types of each dotted key, as in help texts; of a key of several parts all of theirs."""
    found: dict[str, set[str]] = {}
    for option in describe(kind):
        found.setdefault(option.key, set()).update(option.type.split(" or "))
    return found


def split_words(value: Any) -> Any:
    """Return the words of a text such as 10,20, for shells in which [ ] must be quoted; any other value as it is."""
    return tuple(value.split(",")) if isinstance(value, str) else value


def _drop_options(kind: type[Section], tree: dict[str, Any], final: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """Delete from the tree of a file the options of each part that is another one in the final tree.

    Options that both parts inherit from one class stay. Yields a message for each that is deleted.
    """
    for name, field in kind.model_fields.items():
        before, after, inner, family = tree.get(name), final.get(name), section_of(field.annotation), family_of(field)
        if not isinstance(before, dict) or not isinstance(after, dict) or inner is None:
            continue
        if family is not None:
            former, chosen = (family.get(str(part.get("name", default_of(field).name))) for part in (before, after))
            if former is None or chosen is None:
                continue  # `parse` reports an unknown name
            common: Any = next(base for base in former.__mro__ if issubclass(chosen, base))
            for option in [o for o in before if o in former.model_fields and o not in common.model_fields]:
                text = f"{prefix}{name}.name={chosen.name}: dropped {prefix}{name}.{option}"
                yield f"{text}={to_yaml(before.pop(option))} of the run file, an option of {former.name}"
            inner = former
        yield from _drop_options(inner, before, after, f"{prefix}{name}.")


def parse(kind: type[S], tree: dict[str, Any], where: str = "", elsewhere: Collection[str] = ()) -> S:
    """Validate a tree of plain values.

    Raises UserError with one line for each error, after `where` unless it is about the value of a key in `elsewhere`.
    """
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        found = [entry for item in error.errors() for entry in _explain(kind, item)]
        lines = [message if key in elsewhere else where + message for key, message in found]
        raise UserError("\n".join(lines)) from None


def _explain(kind: type[Section], item: Any) -> Iterator[tuple[str, str]]:
    """Yield (key, message) for one of pydantic's errors."""
    path, value, message = ".".join(map(str, item["loc"])), item["input"], item["msg"].removeprefix("Value error, ")
    key = ".".join(name for name in item["loc"] if isinstance(name, str))  # without the position in a list
    match item["type"]:
        case "extra_forbidden":
            yield from ((leaf, unknown_key(kind, leaf)) for leaf in _leaves(path, value))
        case "model_type":
            yield key, f"{path} is a section: give its keys, {path}.KEY=...; got {value!r}"
        case "tuple_type":
            yield key, f"{path} is a list of values: write {path}=A,B (got {value!r})"
        case "part":
            yield key + message.partition(":")[0], path + message  # .name: ..., or how options combine
        case "value_error" | "missing":
            yield key, f"{path}: {message}" if path else message
        case _:
            yield key, f"{path}: {message} (got {value!r})"


def _leaves(key: str, value: Any) -> Iterator[str]:
    """Yield the dotted key of each value in a tree of plain values."""
    if isinstance(value, dict) and value:
        for name, inner in value.items():
            yield from _leaves(f"{key}.{name}", inner)
    else:
        yield key


def unknown_key(kind: type[Section], key: str) -> str:
    """Return the message for an unknown key: similar known keys, or else all keys of its section."""
    known, name = list(keys(kind)), key.rpartition(".")[2]
    keys_of: dict[str, list[str]] = {}
    for k in known:
        keys_of.setdefault(k.rpartition(".")[2], []).append(k)
    same = keys_of.get(_OTHER_NAMES.get(name, name), [])
    similar = [k for match in difflib.get_close_matches(name, keys_of, n=3, cutoff=0.7) for k in keys_of[match]]
    if near := list(dict.fromkeys([*same, *difflib.get_close_matches(key, known, n=3), *similar]))[:3]:
        return f"unknown key {key!r}; nearest known: {', '.join(near)}"
    section = key.removesuffix(name)
    siblings = {section + k.removeprefix(section).split(".")[0] for k in known if k.startswith(section)}
    sections = {k.partition(".")[0] for k in known}
    return f"unknown key {key!r}; known here: {', '.join(sorted(siblings or sections))}"


def given(config: Section, prefix: str = "") -> Iterator[str]:
    """Yield the dotted keys whose values were given, rather than left at their defaults."""
    for name in type(config).model_fields:
        if name in config.model_fields_set:
            value, key = getattr(config, name), prefix + name
            if isinstance(value, Part):
                yield f"{key}.name"
            yield from given(value, f"{key}.") if isinstance(value, Section) else (key,)


def flat(config: Section, prefix: str = "") -> dict[str, Any]:
    """Return {dotted key: plain value} of a configuration, without unused fields."""
    leaves: dict[str, Any] = {}
    for name, value in config.model_dump(mode="json").items():
        inner = getattr(config, name)
        leaves |= flat(inner, f"{prefix}{name}.") if isinstance(inner, Section) else {prefix + name: value}
    return leaves


def dump(config: Section) -> str:
    """Return the complete configuration as YAML, in the order of its fields, without unused fields."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


class _Loader(yaml.SafeLoader):
    """A YAML loader that rejects repeated keys, of which the base class silently keeps the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys_seen = [self.construct_object(key, deep=True) for key, _ in node.value]
        if repeated := sorted({str(key) for key in keys_seen if keys_seen.count(key) > 1}):
            raise yaml.constructor.ConstructorError(None, None, f"{', '.join(repeated)} given twice", node.start_mark)
        return super().construct_mapping(node, deep)


def read_yaml(path: Path, dotted: bool = False) -> dict[str, Any]:
    """Read a file of keys and values. `dotted` allows keys with dots at its top. Raises UserError."""
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
    if wrong := [key for key in tree if "." in str(key) and not dotted]:
        section, _, rest = str(wrong[0]).partition(".")
        raise UserError(f"{path}: write {wrong[0]} as {section}: {{{rest}: ...}} in a file")
    return {name: {} if value is None else value for name, value in tree.items()}


def _override(kind: type[Section], tree: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Apply overrides to a tree of plain values, in place, and return it."""
    types_of = key_types(kind) if overrides else {}
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key:
            raise UserError(f"an override must have the form key=value, for example optim.lr=0.01; got {override!r}")
        _set(tree, {key: _value(key, text, types_of.get(key, set()))})
    return tree


def _value(key: str, text: str, types: set[str]) -> Any:
    """Return the value of an override: literal for text and paths, in which YAML would give # : ~ 2024 a meaning."""
    if "null" in types and text in ("", "null"):
        return None
    if "path" in types and text == "":
        raise UserError(f"{key} is empty: give a path")
    if {"text", "path"} & types:
        return text
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"{key}: {text!r} is not a valid value: {error}") from None
