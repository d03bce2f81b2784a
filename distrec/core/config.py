"""Configuration: frozen, typed sections, read from YAML with dotted overrides. Errors name the dotted key.

A part is a section that is one of a family by name: `loss: {name: ssm, temperature: 0.2}`.
"""

import copy
import difflib
import inspect
import re
import types
import typing
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, TypeVar

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    GetCoreSchemaHandler,
    SerializationInfo,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_core import CoreSchema, core_schema

from distrec.core.errors import UserError
from distrec.core.registry import Registry, import_modules


class Section(BaseModel):
    """Base of every configuration section. The docstring under a field is its help text."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, validate_default=True, allow_inf_nan=False
    )

    def unused(self) -> set[str]:
        """Return the names of the fields that have no effect beside the other values; dumps leave them out."""
        return set()

    @model_validator(mode="before")
    @classmethod
    def _name_parts(cls, values: Any) -> Any:
        """Give each part without a name that of its field's default."""
        if not isinstance(values, dict):
            return values
        named = {
            name: {"name": _default(cls.model_fields[name]).name, **value}
            for name, value in values.items()
            if name in cls.model_fields and _family(cls.model_fields[name]) is not None and isinstance(value, dict)
        }
        return values | named

    @model_serializer(mode="wrap")
    def _serialize(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        name, unused = {"name": self.name} if isinstance(self, Part) else {}, self.unused()
        return name | {key: value for key, value in serialize(self).items() if key not in unused}


class Part(Section):
    """Base of the sections of a family. The fields of a registered subclass are its options.

    The first sentence of the subclass's docstring describes it in help texts.
    """

    name: ClassVar[str] = ""
    """Name in the family, set by `Registry.register`."""


class OneOf:
    """Annotation of a field that holds one part of a family: `loss: Annotated[Loss, OneOf(losses)]`.

    The field needs a default. Its value is parsed from the options of a part with its `name`, by default that of the
    default. Parts that are registered later are known too.
    """

    def __init__(self, family: Registry[Any]) -> None:
        self.family = family

    def __get_pydantic_core_schema__(self, base: type[Part], handler: GetCoreSchemaHandler) -> CoreSchema:
        def validate(value: Any) -> Part:
            if isinstance(value, base):
                return value
            if not isinstance(value, dict):
                raise UserError(f"is a section: give its keys, such as name; got {value!r}")
            options = {key: option for key, option in value.items() if key != "name"}
            part: Part = self.family[value["name"]].model_validate(options)
            return part

        def serialize(part: Part, info: SerializationInfo) -> dict[str, Any]:
            return part.model_dump(mode=info.mode)

        to_plain = core_schema.plain_serializer_function_ser_schema(serialize, info_arg=True)
        return core_schema.no_info_plain_validator_function(validate, serialization=to_plain)


def _family(field: FieldInfo) -> Registry[type[Part]] | None:
    """Return the family of which a field holds one part; None for other fields."""
    return next((item.family for item in field.metadata if isinstance(item, OneOf)), None)


def _default(field: FieldInfo) -> Any:
    return field.get_default(call_default_factory=True)


S = TypeVar("S", bound=Section)


def load(
    kind: type[S], path: Path | None, overrides: Sequence[str] = (), note: Callable[[str], object] = warnings.warn
) -> S:
    """Read a configuration. Imports the modules that its key `run.imports` names before it is parsed.

    Args:
        kind: section class of the whole configuration.
        path: YAML file with the values that differ from the defaults; None for the defaults alone.
        overrides: `dotted.key=value` strings, where the value is YAML; later ones take precedence. One that names
            another part than the file drops the file's options of the former part.
        note: called with a message for each option so dropped.

    Raises:
        UserError: a missing or invalid file, an unknown key (with the nearest known ones), an invalid value, a module
            that cannot be imported.
    """
    tree = {} if path is None else _read_yaml(path)
    where = f"{path}: " if path else ""
    final = _override(kind, copy.deepcopy(tree), overrides)
    import_modules(_imports(final))
    for message in _drop_options(kind, tree, final, where):
        note(message)
    return parse(kind, _override(kind, tree, overrides), where)


def _imports(tree: dict[str, Any]) -> list[str]:
    """Return the modules that `run.imports` names; what is no list of text is left to validation."""
    section = tree.get("run")
    names = split_words(section.get("imports")) if isinstance(section, dict) else ()
    return [name for name in names if isinstance(name, str)] if isinstance(names, (list, tuple)) else []


def split_words(value: Any) -> Any:
    """Return the words of a text such as 10,20, for shells in which [ ] must be quoted; any other value as it is."""
    return tuple(value.split(",")) if isinstance(value, str) else value


def _drop_options(
    kind: type[Section], tree: dict[str, Any], final: dict[str, Any], where: str, prefix: str = ""
) -> Iterator[str]:
    """Delete from the tree of a file the options of each part that is another one in the final tree.

    Options that both parts inherit from one class stay. Yields a message for each that is deleted.
    """
    for name, field in kind.model_fields.items():
        before, after, inner = tree.get(name), final.get(name), _section(field.annotation)
        if not isinstance(before, dict) or not isinstance(after, dict) or inner is None:
            continue
        key = f"{prefix}{name}"
        if _family(field) is not None:
            inner, chosen = _part(field, before, where + key), _part(field, after, key)
            for option in [] if inner is chosen else [o for o in before if o in inner.model_fields]:
                if not issubclass(chosen, _declaring(inner, option)):
                    text = f"{key}.name={chosen.name}: dropped {key}.{option}={_to_yaml(before.pop(option))}"
                    yield f"{text} of the run file, an option of {inner.name}"
        yield from _drop_options(inner, before, after, where, f"{key}.")


def _part(field: FieldInfo, tree: dict[str, Any], where: str) -> type[Part]:
    """Return the part that a tree of plain values names. Raises UserError for an unknown name."""
    family, name = _family(field), tree.get("name", _default(field).name)
    assert family is not None
    try:
        return family[name if isinstance(name, str) else str(name)]
    except UserError as error:
        raise UserError(f"{where}.name: {error}") from None


def _declaring(part: type[Part], option: str) -> type:
    """Return the class that declares an option of a part."""
    return next(base for base in part.__mro__ if option in inspect.get_annotations(base))


def parse(kind: type[S], tree: dict[str, Any], where: str = "") -> S:
    """Validate a tree of plain values. Raises UserError with one line for each error."""
    for name, value in tree.items():
        field = kind.model_fields.get(name)
        if field is not None and _section(field.annotation) and not isinstance(value, (dict, Section)):
            raise UserError(f"{where}{name} is a section: give its keys, {name}.KEY=...; got {value!r}")
    if errors := list(_unknown(kind, tree, where)):
        known = list(keys(kind))
        raise UserError("\n".join(where + (message or _unknown_key(key, known)) for key, message in errors))
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        raise UserError("\n".join(f"{where}{_explain(item)}" for item in error.errors())) from None


class Option(NamedTuple):
    """A key of the configuration as help texts show it."""

    key: str
    type: str
    """Empty for the title of a part, such as loss.name=bpr, whose options follow."""
    default: str
    text: str
    depth: int = 0
    """Indentation: 1 for the title of a loss, 2 for its options, 3 for the title of a part within that loss."""


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
        key, family, inner = prefix + name, _family(field), _section(field.annotation)
        if inner is not None and family is None:
            yield from _describe(inner, f"{key}.", depth, seen)
            continue
        text, default = " ".join((field.description or "").split()), _default(field)
        if family is None:
            yield Option(key, _type_name(field.annotation), _to_yaml(default), text, depth)
            continue
        yield Option(f"{key}.name", " | ".join(sorted(family)), default.name, text, depth)
        for other, section in sorted(family.items()) if key not in seen else ():
            yield Option(f"{key}.name", "", other, _first_sentence(section), depth + 1)
            yield from _describe(section, f"{key}.", depth + 2, seen)
        seen.add(key)


def _first_sentence(section: type[Section]) -> str:
    text = " ".join(inspect.cleandoc(section.__doc__ or "").split("\n\n")[0].split())
    return re.split(r"(?<=\.)\s(?=[A-Z])", text, maxsplit=1)[0]


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
    if origin is dict:
        return f"{_type_name(arguments[1])} by name"
    return {type(None): "null", Path: "path", str: "text"}.get(annotation, getattr(annotation, "__name__", ""))


def _to_yaml(value: Any) -> str:
    """Return a default value as YAML, in one line."""
    plain = str(value) if isinstance(value, Path) else list(value) if isinstance(value, tuple) else value
    plain = plain.model_dump(mode="json") if isinstance(plain, Section) else plain
    return str(yaml.safe_dump(plain, default_flow_style=True, sort_keys=False, width=10**6)).split("\n")[0]


def flat(config: Section, prefix: str = "") -> dict[str, Any]:
    """Return {dotted key: plain value} of a configuration, without unused fields."""
    leaves: dict[str, Any] = {f"{prefix}name": config.name} if isinstance(config, Part) else {}
    unused = config.unused()
    for name, value in config:
        if name in unused:
            continue
        if isinstance(value, Section):
            leaves |= flat(value, f"{prefix}{name}.")
        else:
            leaves[prefix + name] = str(value) if isinstance(value, Path) else value
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


def _override(kind: type[Section], tree: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Apply overrides to a tree of plain values, in place, and return it."""
    text_keys = {option.key for option in describe(kind) if {"text", "path"} & set(option.type.split(" or "))}
    for override in overrides:
        _apply_override(tree, override, text_keys)
    return tree


def _apply_override(tree: dict[str, Any], override: str, text_keys: set[str]) -> None:
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
    tree[last] = text if key in text_keys and value is not None and not isinstance(value, str) else value


def _section(annotation: Any) -> type[Section] | None:
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return None
    return annotation if isinstance(annotation, type) and issubclass(annotation, Section) else None


def _unknown(
    kind: type[Section] | None, tree: dict[str, Any], where: str, prefix: str = ""
) -> Iterator[tuple[str, str]]:
    """Yield the dotted keys of a tree that name no field of the section (None: a section without fields).

    With each key goes the message for an option of another part, "" for a key that no part has.
    """
    fields = kind.model_fields if kind else {}
    for name, value in tree.items():
        key, field = f"{prefix}{name}", fields.get(name)
        inner, family = (_section(field.annotation), _family(field)) if field else (None, None)
        if field and family is not None and isinstance(value, dict):
            part = _part(field, value, where + key)
            options = {option: v for option, v in value.items() if option != "name"}
            for option in [o for o in options if o not in part.model_fields]:
                if owners := [other for other in sorted(family) if option in family[other].model_fields]:
                    del options[option]
                    owner = f"{key}.{option} is an option of {', '.join(owners)}"
                    yield f"{key}.{option}", f"{owner}; {key}.name is {part.name}"
            yield from _unknown(part, options, where, f"{key}.")
        elif isinstance(value, dict) and value and (inner or field is None):
            yield from _unknown(inner, value, where, f"{key}.")
        elif field is None:
            yield key, ""


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
