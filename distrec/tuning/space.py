"""Search spaces: ranges of configuration keys, read from a file, checked against the configuration."""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from distrec.core.config import flat, key_types, read_yaml, unknown_key, value_errors
from distrec.core.errors import UserError
from distrec.core.section import Section
from distrec.training.config import Config

Values = dict[str, Any]
"""Values by dotted key."""

_FLOATS, _INTS, _LISTS = ("uniform", "log_uniform", "quantised"), ("int", "log_int"), ("choice", "grid")
KINDS = (*_FLOATS, *_INTS, *_LISTS)
_FIXED = ("data.", "eval.", "run.", "tracking.", "tune.", "train.workers", "train.watch")
_MOST_COMBINATIONS = 100_000
_NUMBER: TypeAdapter[float] = TypeAdapter(float)  # also of the text 1e-4, which YAML takes for no number


@dataclass(frozen=True)
class Range:
    """The values of one key.

    Attributes:
        kind: one of `KINDS`.
        low, high: bounds, both included.
        step: distance of values, for `quantised` and `int`.
        choices: values of `choice` and `grid`.
        when: the key varies only where these other keys have one of these values.
    """

    key: str
    kind: str
    low: float = 0
    high: float = 0
    step: float | None = None
    choices: tuple[Any, ...] = ()
    when: Mapping[str, tuple[Any, ...]] | None = None

    def extremes(self) -> tuple[Any, ...]:
        """Return the values to check against the configuration."""
        return self.choices or (self.low, self.high)

    def all_values(self) -> list[Any]:
        """Return all values. Raise UserError if they are not finite in number."""
        if self.choices:
            return list(self.choices)
        if self.kind == "quantised":
            assert self.step is not None
            count = math.floor((self.high - self.low) / self.step + 1e-9) + 1
            return [self.low + k * self.step for k in range(count)]
        if self.kind == "int":
            return list(range(int(self.low), int(self.high) + 1, int(self.step or 1)))
        raise UserError(f"{self.key}: tune.sampler=grid needs a finite number of values: choice, quantised or int")


@dataclass(frozen=True)
class Space:
    """Ranges, in an order in which each follows those of its conditions, and the base configuration."""

    ranges: tuple[Range, ...]
    base: Values

    def is_active(self, key_range: Range, values: Values) -> bool:
        """Return whether a key varies beside these values of the ranges before it."""
        own = {r.key for r in self.ranges}
        given = {k: values.get(k) if k in own else self.base.get(k) for k in key_range.when or {}}
        return all(given[key] in allowed for key, allowed in (key_range.when or {}).items())

    def combinations(self, kinds: Sequence[str] = KINDS) -> list[Values]:
        """Return all combinations of the ranges of some kinds; [{}] without any."""
        found = list(
            itertools.islice(self._combine({}, [r for r in self.ranges if r.kind in kinds]), 1 + _MOST_COMBINATIONS)
        )
        if len(found) > _MOST_COMBINATIONS:
            raise UserError(f"the grid has more than {_MOST_COMBINATIONS:,} combinations: use fewer values, or random")
        return found

    def _combine(self, values: Values, ranges: Sequence[Range]) -> Iterator[Values]:
        if not ranges:
            yield values
            return
        first, *rest = ranges
        for value in first.all_values() if self.is_active(first, values) else ():
            yield from self._combine({**values, first.key: value}, rest)
        if not self.is_active(first, values):
            yield from self._combine(values, rest)


def read_search(path: Path) -> tuple[Values, Values]:
    """Return (fixed values by dotted key, ranges by dotted key) of a search file. Raises UserError."""
    fixed: Values = {}
    ranges: Values = {}
    for key, value in _flatten(read_yaml(path, dotted=True), ""):
        if key in fixed or key in ranges:
            raise UserError(f"{path}: {key} is given twice")
        (ranges if _is_given_as_range(value) else fixed)[key] = value
    return fixed, ranges


def _flatten(tree: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, dict) and value and not _is_given_as_range(value):
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _is_range(value: Any) -> bool:
    return isinstance(value, dict) and bool({*KINDS, "when"} & value.keys())


def _is_given_as_range(value: Any) -> bool:
    """Return whether this is a range, of a kind that exists or of one that is mistyped, and no section."""
    return (
        _is_range(value)
        or isinstance(value, dict)
        and any(
            isinstance(bounds, list) and get_close_matches(str(name), KINDS, 1, 0.8) for name, bounds in value.items()
        )
    )


def make_space(config: Section, ranges: Mapping[str, Any]) -> Space:
    """Return the space of ranges such as `{"optim.lr": {"log_uniform": [1e-4, 0.1]}}`.

    Args:
        config: what the keys that do not vary are.
        ranges: by dotted key: a dict with one of `KINDS` and, optionally, `when`.

    Raises:
        UserError: an unknown key, a range that its key does not allow, a condition that cannot be met. Names the key.
    """
    if not ranges:
        raise UserError("the search space is empty: give a range, such as optim.lr: {log_uniform: [1.0e-4, 0.1]}")
    types = key_types(Config)
    parsed = {key: _parse(key, ranges[key], types) for key in sorted(ranges)}  # values do not depend on their order
    graph = {key: [k for k in r.when or {} if k in parsed] for key, r in parsed.items()}
    try:
        order = list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        raise UserError(f"when: conditions go round in a circle: {', '.join(error.args[1])}") from None
    space = Space(tuple(parsed[key] for key in order), flat(config))
    for key_range in space.ranges:
        _check(config, space, parsed, key_range)
    return space


def _parse(key: str, given: Any, types: Mapping[str, set[str]]) -> Range:
    """Return one range. Raises UserError."""
    key_type = types.get(key) or {
        t.removesuffix(" by name") for t in types.get(key.rpartition(".")[0], ()) if "by name" in t
    }
    if not key_type:
        raise UserError(unknown_key(Config, key))
    if key.startswith(_FIXED):
        raise UserError(f"{key} cannot vary between trials: their values would not be comparable")
    if not _is_range(given) or len(kinds := [kind for kind in given if kind != "when"]) != 1 or kinds[0] not in KINDS:
        raise UserError(f"{key}: a range is one of {', '.join(KINDS)} and, optionally, when; got {given!r}")
    kind, value, when = kinds[0], given[kinds[0]], _conditions(key, given.get("when"), types)
    if kind in _LISTS:
        if not isinstance(value, (list, tuple)) or not value or any(value.count(v) > 1 for v in value):
            raise UserError(f"{key}: {kind} needs a list of different values, got {value!r}")
        return Range(key, kind, choices=tuple(value), when=when)
    if kind in _FLOATS and "float" not in key_type:
        others = "int, log_int or choice" if "int" in key_type else "choice"
        raise UserError(f"{key} is not a real number, but {' or '.join(sorted(key_type))}: use {others}, not {kind}")
    if kind in _INTS and not {"int", "float"} & key_type:
        raise UserError(f"{key} is not a number, but {' or '.join(sorted(key_type))}: use choice, not {kind}")
    return Range(key, kind, *_bounds(key, kind, value), when=when)


def _bounds(key: str, kind: str, value: Any) -> tuple[float, float, float | None]:
    """Return (low, high, step)."""
    wanted = {"quantised": "[low, high, step]", "int": "[low, high] or [low, high, step]"}.get(kind, "[low, high]")
    counts = {"quantised": (3,), "int": (2, 3)}.get(kind, (2,))
    try:
        bounds = [_NUMBER.validate_python(v) for v in value]
    except (ValidationError, TypeError):
        bounds = []
    if len(bounds) not in counts or not all(map(math.isfinite, bounds)) or isinstance(value, str):
        raise UserError(f"{key}: {kind} needs {wanted}, got {value!r}")
    low, high, step = bounds[0], bounds[1], bounds[2] if len(bounds) == 3 else None
    if not low < high or (step is not None and not 0 < step <= high - low):
        raise UserError(f"{key}: {kind} needs low < high{' and a step between' if step else ''}, got {value!r}")
    if kind.startswith("log") and low <= 0:
        raise UserError(f"{key}: {kind} needs bounds above 0, got {value!r}")
    if kind in _INTS:
        if any(n != int(n) for n in bounds):
            raise UserError(f"{key}: {kind} needs whole numbers, got {value!r}")
        low, high, step = int(low), int(high), None if step is None else int(step)
    return low, high, step


def _conditions(key: str, when: Any, types: Mapping[str, set[str]]) -> dict[str, tuple[Any, ...]]:
    if when is None:
        return {}
    if not isinstance(when, dict) or not when:
        raise UserError(
            f"{key}: when needs other keys and their values, such as {{optim.decay.scope: full}}; got {when!r}"
        )
    if unknown := [k for k in when if k not in types]:
        raise UserError(f"{key}: when: {unknown_key(Config, unknown[0])}")
    return {k: tuple(v) if isinstance(v, (list, tuple)) else (v,) for k, v in when.items()}


def _check(config: Section, space: Space, ranges: Mapping[str, Range], key_range: Range) -> None:
    """Raise UserError if the key does not allow the range, or if a condition can never be met."""
    key, own = key_range.key, {r.key for r in space.ranges}
    for other, allowed in (key_range.when or {}).items():
        if key_range.kind == "grid" and other in own and ranges[other].kind != "grid":
            raise UserError(f"{key}: grid may depend on keys that are fixed or a grid; {other} is neither")
        possible = ranges[other].choices if other in own else (space.base.get(other),)
        if possible and not set(map(repr, possible)) & set(map(repr, allowed)):
            raise UserError(f"{key}: when: {other} is never {' or '.join(map(str, allowed))}")
    assumed = _assumed(key_range, ranges)
    for value in key_range.extremes():
        if errors := value_errors(config, key, {**assumed, key: value}):
            raise UserError(f"{key}: {key_range.kind}: {errors[0]}")


def _assumed(key_range: Range, ranges: Mapping[str, Range]) -> Values:
    """Return values with which a key varies."""
    values: Values = {}
    for other, allowed in (key_range.when or {}).items():
        if other in ranges:
            possible = ranges[other].choices or allowed
            values |= _assumed(ranges[other], ranges) | {other: next(v for v in possible if v in allowed)}
    return values
