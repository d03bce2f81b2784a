"""Sections of a configuration: frozen, typed, with their help texts; and parts, of which a section holds one by name.

A part is a section that is one of a family: `loss: {name: ssm, temperature: 0.2}`.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, field_validator, model_serializer, model_validator
from pydantic.fields import FieldInfo
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from distrec.core.errors import UserError
from distrec.core.registry import Registry


def expand_user(path: str | Path) -> Path:
    """Return a path with ~ and ~USER expanded, where there is such a user."""
    return Path(os.path.expanduser(path))


class Section(BaseModel):
    """Base of every configuration section. The docstring under a field is its help text. ~ is expanded in paths."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, validate_default=True, allow_inf_nan=False
    )

    def unused(self) -> set[str]:
        """Return the fields, also dotted ones of nested sections, that do nothing beside the other values.

        Dumps leave them out.
        """
        return set()

    @model_validator(mode="before")
    @classmethod
    def _name_parts(cls, values: Any) -> Any:
        """Give each part without a name that of its field's default."""
        for name, field in cls.model_fields.items() if isinstance(values, dict) else ():
            if family_of(field) is not None and isinstance(values.get(name), dict):
                values = {**values, name: {"name": default_of(field).name, **values[name]}}
        return values

    @field_validator("*")
    @classmethod
    def _expand_path(cls, value: Any) -> Any:
        return expand_user(value) if isinstance(value, Path) else value

    @model_serializer(mode="wrap")
    def _serialize(self, serialize: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
        name, unused = {"name": self.name} if isinstance(self, Part) else {}, self.unused()
        return name | without(serialize(self), unused)


def without(tree: dict[str, Any], keys: set[str]) -> dict[str, Any]:
    """Return a tree of plain values without some dotted keys."""
    kept = {name: value for name, value in tree.items() if name not in keys}
    for section, _, key in (dotted.partition(".") for dotted in keys if "." in dotted):
        if section in kept:
            kept[section] = without(kept[section], {key})
    return kept


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

    def __get_pydantic_core_schema__(self, base: type[Part], handler: Any) -> CoreSchema:
        def validate(value: Any) -> Any:
            if isinstance(value, base):
                return value
            if not isinstance(value, dict):
                raise PydanticCustomError("model_type", "a section")
            options, family = dict(value), self.family
            try:
                part = family[str(options.pop("name"))]
            except UserError as error:
                raise PydanticCustomError("part", "{text}", {"text": f".name: {error}"}) from None
            for option in [key for key in options if key not in part.model_fields]:
                if owners := [name for name in sorted(family) if option in family[name].model_fields]:
                    text = f".{option} is an option of {', '.join(owners)}, not of {part.name}"
                    raise PydanticCustomError("part", "{text}", {"text": text})
            return part.model_validate(options)

        return core_schema.no_info_plain_validator_function(validate)


def family_of(field: FieldInfo) -> Registry[type[Part]] | None:
    """Return the family of which a field holds one part; None for other fields."""
    return next((item.family for item in field.metadata if isinstance(item, OneOf)), None)


def default_of(field: FieldInfo) -> Any:
    """Return the default of a field."""
    return field.get_default(call_default_factory=True)


def section_of(annotation: Any) -> type[Section] | None:
    """Return the section that an annotation names; None for other types."""
    return annotation if isinstance(annotation, type) and issubclass(annotation, Section) else None
