"""Identifiers use standard terms of the field, and none of the listed substitutes for them."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted(file for folder in ("distrec", "tests", "benchmarks") for file in (ROOT / folder).rglob("*.py"))
# The coined name as a pattern, and the standard term in its stead. A leading underscore is ignored.
COINED = {
    r"places?(_.*)?|.*_at(_[A-Z0-9]+)?|at(_[A-Z0-9]+)?": "index, inverse index, to_device",
    r"offsets(_.*)?": "indptr",
    r"Box(es)?|arrive|wait": "shared buffers, barrier",
    r"Line|Cuts|cuts": "cumulative mass, excluded intervals",
    r"Route|route|ask|asked(_.*)?": "lookup plan, plan_lookup, prefetched",
    r"by": "transport, backend",
    r"[Tt]ell|told": "all_gather_str, emit",
    r"Idle|CatchUp|catch_up_?": "deferred update, per-row deferred",
    r"owes|begin|mark_settled|settled?_?": "has_pending, prepare_step, reset, flush",
    r"unit|Left|Past": "scale, cumulative log-decay, missed steps",
    r"numbers(_.*)?": "coefficients",
    r"claim|mix_?|takes": "take_stale, affine_, has_kernel",
    r"turns|instructions|marks": "atomics, intrinsics, dedup",
    r"Unhurried|Pump|appearing|unit_rows": "scheduler back-off, batch actor, atomic directory, l2_normalize",
}
# pyarrow's own word for the boundaries of a list column.
ALLOWED = {"distrec/sampling/arrow.py": {"offsets"}}


def defined_names(tree: ast.Module) -> set[str]:
    """Return every name that a module defines: functions, classes, arguments, variables, attributes, aliases."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.arg):
            found.add(node.arg)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            found.add(node.attr)
        elif isinstance(node, ast.alias):
            found.add(node.asname or "")
    return found


def coined(names: set[str]) -> dict[str, str]:
    """Return the coined ones among names, each with the term to use."""
    return {name: term for name in names for pattern, term in COINED.items() if re.fullmatch(pattern, name.lstrip("_"))}


@pytest.mark.parametrize("folder", ["distrec", "tests", "benchmarks"])
def test_no_coined_name(folder):
    wrong = []
    for file in FILES:
        name = file.relative_to(ROOT).as_posix()
        if name.startswith(folder + "/"):
            names = defined_names(ast.parse(file.read_text())) | {file.stem}
            wrong += [f"{name}: {k} -> {term}" for k, term in coined(names - ALLOWED.get(name, set())).items()]
    assert wrong == []


def test_coined_names_are_seen():
    tree = ast.parse("def ask(place_U, *, by):\n    self._unit = asked = 1\n    for _at, item_at_BN in x: pass")
    assert set(coined(defined_names(tree))) == {"ask", "place_U", "by", "_unit", "asked", "_at", "item_at_BN"}
