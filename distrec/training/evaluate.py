"""Evaluation of a trained run: ranks with the rows of its last checkpoint, in this process."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from distrec.core.config import flat
from distrec.core.errors import UserError
from distrec.core.section import expand_user
from distrec.core.status import share, stage
from distrec.data.dataset import MANIFEST, Dataset, Part
from distrec.data.prepare import prepare
from distrec.evaluation.evaluator import evaluate_part
from distrec.evaluation.per_user import MOST_USERS
from distrec.models.base import Scorer, SolverConfig
from distrec.sharding.collectives import Exchange
from distrec.training.config import Config, load_config
from distrec.training.run_folder import BEST, RunFolder
from distrec.training.sharded_model import ShardedModel

PARTS = {"test": Part.TEST, "valid": Part.VALID}


@dataclass(frozen=True)
class Evaluation:
    """Metrics of a checkpoint on one part of the data."""

    metrics: dict[str, float]
    """`test/recall@20` and so on: means over the users."""
    users: int
    """Users that the metrics are means over."""
    left_out_users: int
    """Users without held-out items or without training items."""
    untrained_users: int
    """Users without training interactions."""
    untrained_items: int
    """Items without training interactions."""
    untrained_share: float
    """Share of the held-out interactions, of the users evaluated, with such items."""
    epoch: int
    """Epoch after which the checkpoint was written."""
    epochs: int
    """Epochs that the run is configured for."""
    best: bool
    """Whether that epoch is the best by `train.watch`."""
    finished: bool
    """Whether the run is finished."""


def evaluate(
    run: str | Path,
    part: Literal["test", "valid"] = "test",
    overrides: Sequence[str] = (),
    note: Callable[[str], object] = warnings.warn,
) -> Evaluation:
    """Evaluate a run with the rows of its last checkpoint, or of its best epoch by `train.watch`.

    Args:
        run: the run folder; any number of workers may have written it.
        part: part of the data to evaluate on.
        overrides: `eval.*` keys, for example `["eval.k=10,20,50"]`.
        note: called with a line if the checkpoint to evaluate is damaged, and another one is evaluated; and for
            cut-offs beyond the catalogue.

    Raises:
        UserError: no run, no checkpoint, an unknown or empty part, other data than the run was trained on, or an
            override of a key outside `eval`.
    """
    if part not in PARTS:
        raise UserError(f"unknown part {part!r}; known: {', '.join(PARTS)}")
    folder, config, dataset = open_run(run, overrides)
    if not dataset.manifest.count(PARTS[part]):
        raise UserError(f"the data of {run} have no {part} part")
    for text in config.eval.notes(dataset.manifest.items):
        note(text)
    if config.eval.bootstrap and dataset.manifest.users > MOST_USERS:
        raise UserError(f"eval.bootstrap: the data have more than {MOST_USERS:,} users")
    cuda = torch.cuda.is_available() and config.train.device != "cpu"
    loaded = load_checkpoint(folder, config, dataset, torch.device("cuda" if cuda else "cpu"), note)
    stage(f"evaluating on the {part} part")
    per_user = config.eval.per_user
    sums = evaluate_part(
        loaded.scorer, dataset, PARTS[part], config.eval, loaded.exchange, share, per_user=per_user is not None
    )
    if per_user is not None:
        if sums.per_user is None:
            raise UserError(f"eval.per_user: the data have more than {MOST_USERS:,} users")
        sums.per_user.write(per_user, dataset.user_ids())
    metrics = {f"{part}/{key}": value for key, value in sums.means().items()}
    m = dataset.manifest
    untrained = m.users_without_train, m.items_without_train, sums.untrained_share
    return Evaluation(
        metrics,
        sums.users,
        sums.left_out,
        *untrained,
        len(loaded.history),
        config.epochs,
        loaded.best,
        folder.result() is not None,
    )


def open_run(run: str | Path, overrides: Sequence[str] = ()) -> tuple[RunFolder, Config, Dataset]:
    """Return the folder of a run, its configuration with overrides of `eval.*` keys, and its prepared data.

    Data that are gone are prepared again.

    Raises:
        UserError: no run, data that are gone or have changed, an override of a key outside `eval`.
    """
    folder = RunFolder(expand_user(run))
    config = trained = folder.config()
    if overrides:
        config = load_config(folder.config_file, overrides)
    before, now = flat(trained), flat(config)
    if wrong := [k for k in now if k in before and before[k] != now[k] and not k.startswith("eval.")]:
        raise UserError(f"{', '.join(wrong)}: only eval.* keys of a trained run can be changed")
    prepared = folder.path / folder.facts().get("data", "")  # absolute, or beside the run in an exported model
    if (prepared / MANIFEST).exists():
        dataset = Dataset.open(prepared)
    else:
        try:
            dataset = prepare(config.data)
        except UserError as error:
            raise UserError(
                f"the prepared data of {folder.path}, {prepared}, are gone, and cannot be prepared again: {error}\n"
                "Restore that folder, or run the command where data.source can be read."
            ) from None
    folder.check_fingerprint(dataset.manifest.fingerprint)
    return folder, config, dataset


@dataclass(frozen=True)
class Loaded:
    """What one worker needs of a checkpoint to rank."""

    scorer: Scorer
    exchange: Exchange
    history: list[dict[str, Any]]
    """Records of the epochs."""
    checkpoint: Path
    """Its folder."""

    @property
    def best(self) -> bool:
        """Whether it is the best epoch by `train.watch`."""
        return self.checkpoint.parent.name == BEST


def load_checkpoint(
    folder: RunFolder,
    config: Config,
    dataset: Dataset,
    device: torch.device,
    note: Callable[[str], object] = warnings.warn,
) -> Loaded:
    """Load the last checkpoint of a run, or its best epoch by `train.watch`. Collective.

    Raises:
        UserError: there is no checkpoint.
    """
    best = folder.best_checkpoint(note) if config.watched else None
    checkpoint = best or folder.last_checkpoint(note)
    stage(f"loading {checkpoint.name}")
    scorer, exchange, meta = _load(config, dataset, device, checkpoint)
    return Loaded(scorer, exchange, meta["history"], checkpoint)


def _load(
    config: Config, dataset: Dataset, device: torch.device, checkpoint: Path
) -> tuple[Scorer, Exchange, dict[str, Any]]:
    """Return the scorer of a checkpoint, its group, and the checkpoint's `meta`. Builds no optimizer and no stream."""
    if isinstance(config.model, SolverConfig):
        learner = config.model.learner(dataset, config.run.seed, device)
        meta = learner.load(checkpoint)
        return learner.scorer, learner.exchange, meta
    model = ShardedModel(config, dataset, device)
    return model, model.exchange, model.load_rows(checkpoint)[1]
