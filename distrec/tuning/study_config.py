"""Study files: a base run, the keys that vary, seeds, and what to compare; in a full and a small size."""

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from distrec.core.config import parse, read_yaml, split_words
from distrec.core.errors import UserError
from distrec.core.section import Section, expand_user

Size = Literal["full", "small"]


class FigureConfig(Section):
    """A figure: panels of a metric against an axis or another metric."""

    x: str
    """Axis of the study, or a metric; then each cell is a point with its label."""
    y: Annotated[tuple[str, ...], BeforeValidator(split_words)] = ()
    """Metrics, each a panel. Default: the first metric of the study."""
    series: Annotated[tuple[str, ...], BeforeValidator(split_words)] | None = None
    """Axes whose values are lines of their own. null: all but x."""


class PairedTestConfig(Section):
    """Paired tests over users of the cells against a reference."""

    name: Literal["t", "wilcoxon"] = "t"
    """Paired t-test, or Wilcoxon's signed-rank test, of the users' values, each the mean over the seeds."""
    metric: str | None = None
    """A metric that is a mean over users. null: the first metric of the study."""
    reference: dict[str, Any] | None = None
    """Values of some axes: each cell is compared with the cell that has them and is equal otherwise. null: all are
    compared with the best cell, if the metric is one to maximise."""


class SizeConfig(Section):
    """What one size of a study changes."""

    base: dict[str, Any] = {}
    """Keys of all runs."""
    cells: dict[str, Any] = {}
    """Axes that are replaced."""
    seeds: tuple[int, ...] | None = None
    search: str | dict[str, Any] | None = None


class StudyConfig(Section):
    """A study: the cross product of some axes over seeds."""

    name: str = "study"
    """Names the folder, runs/NAME. Default: the name of the file."""
    run_file: Path | None = None
    """Run file that the study is based on, beside the study file or by its path from there."""
    base: dict[str, Any] = {}
    """Keys of all runs: optim.lr: 0.01."""
    cells: dict[str, Any] = {}
    """Axes, of which all combinations are run. A key with a list of values, sampling.negatives: [4, 64]; or a name with
    groups of keys, loss: {bpr: {loss.name: bpr}, ssm: {loss.name: ssm, loss.temperature: 0.2}}."""
    seeds: tuple[int, ...] = Field((0,), min_length=1)
    """Values of run.seed: each cell is run with each."""
    search: str | dict[str, Any] | None = None
    """A search of each cell: ranges and tune.* keys, or a search file beside the study file. The best configuration is
    then trained on the training and validation part with each seed."""
    metrics: Annotated[tuple[str, ...], BeforeValidator(split_words)] = Field(("ndcg@20", "recall@20"), min_length=1)
    """Columns of the table: metrics on the test part, those on the validation part as valid/ndcg@20, and epochs,
    best_epoch, epoch_s (seconds an epoch, the median) and train_s."""
    ratios: dict[str, tuple[str, str]] = {}
    """Further metrics by name: the first divided by the second."""
    test: PairedTestConfig = PairedTestConfig()
    figures: tuple[FigureConfig, ...] = ()
    """Default: none."""
    full: SizeConfig = SizeConfig()
    small: SizeConfig | None = None

    @field_validator("cells", mode="after")
    @classmethod
    def _axes(cls, cells: dict[str, Any]) -> dict[str, Any]:
        for name, axis in cells.items():
            groups = isinstance(axis, dict) and all(isinstance(group, dict) for group in axis.values())
            if not axis or not (groups or isinstance(axis, list)):
                raise ValueError(
                    f"{name}: give a list of values, or groups of keys as {{a: {{optim.lr: 0.1}}, b: {{...}}}}; "
                    f"got {axis!r}"
                )
            labels = [label_of(value) for value in axis]
            if len(set(labels)) < len(labels):
                raise ValueError(f"{name}: a value is given twice in {', '.join(labels)}")
        return cells

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if not self.cells:
            raise ValueError("cells is empty: name at least one key and its values")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds: a seed is given twice in {list(self.seeds)}")
        for axis, value in (self.test.reference or {}).items():
            labels = [label_of(other) for other in self.cells.get(axis, ())]
            if label_of(value) not in labels:
                known = f"of {axis}: {', '.join(labels)}" if labels else f"axes: {', '.join(self.cells)}"
                raise ValueError(f"test.reference: no cell has {axis}={label_of(value)}; {known}")
        for figure in self.figures:
            if unknown := [axis for axis in figure.series or () if axis not in self.cells]:
                raise ValueError(f"figures: series: no axis {unknown[0]!r}; known: {', '.join(self.cells)}")
        return self

    @property
    def compared(self) -> str:
        """The metric whose differences are tested."""
        return self.test.metric or self.metrics[0]

    @property
    def columns(self) -> tuple[str, ...]:
        """All metrics: those of the table, and those that only figures show."""
        drawn = (name for figure in self.figures for name in (figure.x, *figure.y) if name not in self.cells)
        return tuple(dict.fromkeys([*self.metrics, *self.ratios, *drawn]))


def load_study(study: str | Path | Mapping[str, Any], size: Size = "full") -> StudyConfig:
    """Return a study in one size.

    Args:
        study: a file, or what one holds.
        size: `full` or `small`.

    Raises:
        UserError: a missing or invalid file, an unknown key, a study without a small size.
    """
    path = None if isinstance(study, Mapping) else expand_user(study)
    tree = dict(study) if isinstance(study, Mapping) else {"name": Path(study).stem, **read_yaml(expand_user(study))}
    where = f"{path}: " if path else ""
    whole = parse(StudyConfig, tree, where)
    chosen = whole.full if size == "full" else whole.small
    if chosen is None:
        raise UserError(f"{where}the study has no small size: give its changes under small")
    tree = copy.deepcopy({key: value for key, value in tree.items() if key not in ("full", "small")})
    tree["base"] = flatten(whole.base) | flatten(chosen.base)
    tree["cells"] = whole.cells | chosen.cells
    for key in ("seeds", "search"):
        if (value := getattr(chosen, key)) is not None:
            tree[key] = value
    if path is not None:
        for key in ("run_file", "search"):
            if isinstance(tree.get(key), str):
                tree[key] = str(path.parent / expand_user(tree[key]))
    if size == "small":
        tree["name"] = f"{whole.name}_small"
    return parse(StudyConfig, tree, where)


def label_of(value: Any) -> str:
    """Return a value of an axis as text."""
    return json.dumps(value) if isinstance(value, (list, bool)) or value is None else str(value)


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the values of nested or dotted keys by dotted key."""
    leaves: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, dict) and value:
            leaves |= flatten(value, f"{prefix}{name}.")
        else:
            leaves[f"{prefix}{name}"] = value
    return leaves
