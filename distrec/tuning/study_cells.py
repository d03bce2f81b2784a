"""The cells of a study: the cross product of its axes, and the configuration of each run."""

import copy
import difflib
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

from distrec.core.config import flat, load_tree, parse, set_values
from distrec.core.errors import UserError
from distrec.evaluation.catalogue import CATALOGUE_METRICS
from distrec.evaluation.metrics import ADDITIVE, METRICS
from distrec.evaluation.strata import ITEM_STRATA, USER_GROUPS
from distrec.training.config import Config
from distrec.training.run_folder import FREE
from distrec.tuning.config import absolute
from distrec.tuning.study_config import StudyConfig, flatten, label_of

_KEY_LENGTH = 8  # bytes of a hash
# Prefixes of keys that do not say what a run computes. Data have a fingerprint.
_FREE = (*FREE, "data.", "train.checkpoint_every")
_FIXED = ("run.seed", "run.dir", "run.resume", "eval.test", "tracking.")
RUN_FIGURES = ("epochs", "best_epoch", "epoch_s", "train_s")
"""Figures of a run that are no metrics of a part."""

Labels = dict[str, str]
"""Label of each axis."""


@dataclass(frozen=True)
class Cell:
    """A combination of the axes.

    Attributes:
        labels: its value of each axis, as text.
        values: the values by dotted key that it gives.
        tree: configuration as plain values, without a seed.
        config: the same, parsed.
    """

    labels: Labels
    values: Mapping[str, Any]
    tree: dict[str, Any]
    config: Config

    @property
    def label(self) -> str:
        """Its values in one line: `loss=ssm, sampling.negatives=64`."""
        return _in_one_line(self.labels)

    def with_values(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return its configuration with further values, as plain values."""
        return set_values(Config, copy.deepcopy(self.tree), values)


def make_cells(study: StudyConfig, overrides: Sequence[str] = ()) -> list[Cell]:
    """Return the cells of a study.

    Args:
        study: the study.
        overrides: `key=value` strings for the base configuration; the cells win over them.

    Raises:
        UserError: an unknown key, an invalid value or combination, an override of a key that varies. Names the cell.
    """
    base = load_tree(Config, study.run_file, overrides, lambda text: None, study.base)
    base.setdefault("train", {}).setdefault("workers", 1)  # without Ray: workers change the speed alone
    cells = []
    for labels, values in _combinations(study):
        where = _in_one_line(labels)
        for key in values:
            if key.startswith(_FIXED):
                raise UserError(f"{where}: a study sets {key} itself: leave it out (its seeds are under seeds)")
            if any(override.partition("=")[0] == key for override in overrides):
                raise UserError(f"{key} varies between the cells of the study, and cannot be set for all of them")
        tree = set_values(Config, copy.deepcopy(base), values)
        config = parse(Config, tree, f"cell {where}: ")
        if not config.eval.test:
            raise UserError("a study compares figures on the test part: leave eval.test out")
        # Absolute, as the runs lie in other folders.
        tree = set_values(Config, tree, absolute(config))
        cells.append(Cell(labels, values, tree, parse(Config, tree)))
    return cells


def _in_one_line(labels: Labels) -> str:
    return ", ".join(f"{axis}={label}" for axis, label in labels.items())


def _combinations(study: StudyConfig) -> Iterator[tuple[Labels, dict[str, Any]]]:
    """Yield (labels, values) of each cell."""
    axes: dict[str, list[tuple[str, dict[str, Any]]]] = {}
    for name, axis in study.cells.items():
        if isinstance(axis, dict):
            axes[name] = [(label_of(label), flatten(group)) for label, group in axis.items()]
        else:
            axes[name] = [(label_of(value), {name: value}) for value in axis]
    for chosen in itertools.product(*axes.values()):
        values: dict[str, Any] = {}
        for axis, (label, group) in zip(axes, chosen, strict=True):
            if both := sorted(values.keys() & group.keys()):
                raise UserError(f"cells: {axis}={label} and another axis both give {both[0]}")
            values |= group
        yield dict(zip(axes, (label for label, _ in chosen), strict=True)), values


def run_key(config: Config, given: Mapping[str, Any], fingerprint: str) -> str:
    """Return a hash of what a run computes: its configuration and its data.

    Args:
        config: configuration.
        given: keys that the cell gives, which count even where they only say how a run computes.
        fingerprint: of the data.
    """
    return key_of({k: v for k, v in flat(config).items() if k in given or not k.startswith(_FREE)}, fingerprint)


def key_of(values: Mapping[str, Any], fingerprint: str) -> str:
    """Return a hash of values by dotted key and the fingerprint of data."""
    text = json.dumps({"data": fingerprint, **values}, sort_keys=True)
    return blake2b(text.encode(), digest_size=_KEY_LENGTH).hexdigest()


def check_metrics(study: StudyConfig, cells: Sequence[Cell]) -> None:
    """Raise UserError if a metric of the study is not evaluated in any cell."""
    known = {name for cell in cells for name in _known_metrics(cell.config)}
    wanted = [*study.columns, *itertools.chain(*study.ratios.values()), *filter(None, [study.test.metric])]
    for name in wanted:
        if name not in known and name not in study.ratios:
            near = difflib.get_close_matches(name, known, n=3) or sorted(known)[:12]
            raise UserError(
                f"no cell has the metric or axis {name!r}; nearest known: {', '.join(near)} "
                "(eval.metrics, eval.k, eval.strata and eval.magnitudes say what is evaluated)"
            )


def _known_metrics(config: Config) -> set[str]:
    """Return the names of the figures of a run."""
    names = {f"{name}@{k}" for name in config.eval.metrics for k in config.eval.k}
    of_users = {name for name in names if name.partition("@")[0] in METRICS}
    additive = {name for name in of_users if name.partition("@")[0] in ADDITIVE}
    if config.eval.strata:
        names |= {f"{name}/{part}" for name in additive for part in (*ITEM_STRATA, *USER_GROUPS)}
    if config.eval.magnitudes:
        names |= {f"{name}/{similarity}" for name in of_users for similarity in ("dot", "cosine")}
        names |= {f"norm_correlation_{side}" for side in ("users", "items")}
    assert set(config.eval.metrics) <= METRICS.keys() | CATALOGUE_METRICS.keys()
    return {*names, *(f"valid/{name}" for name in names), *RUN_FIGURES}
