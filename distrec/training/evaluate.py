"""Evaluation of a trained run: ranks with the rows of its last checkpoint, in this process."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from distrec.core.config import flat
from distrec.core.errors import UserError
from distrec.data.dataset import MANIFEST, Dataset, Part
from distrec.data.prepare import prepare
from distrec.evaluation.evaluator import evaluate_part
from distrec.models.base import Scorer, SolverConfig
from distrec.sharding.collectives import Exchange
from distrec.training.config import Config, load_config
from distrec.training.run_folder import RunFolder
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
    epoch: int
    """Epoch after which the checkpoint was written."""
    epochs: int
    """Epochs that the run is configured for."""


def evaluate(run: str | Path, part: Literal["test", "valid"] = "test", overrides: Sequence[str] = ()) -> Evaluation:
    """Evaluate the last checkpoint of a run.

    Args:
        run: the run folder; any number of workers may have written it.
        part: part of the data to evaluate on.
        overrides: `eval.*` keys, for example `["eval.k=10,20,50"]`.

    Raises:
        UserError: no run, no checkpoint, an unknown or empty part, other data than the run was trained on, or an
            override of a key outside `eval`.
    """
    if part not in PARTS:
        raise UserError(f"unknown part {part!r}; known: {', '.join(PARTS)}")
    folder = RunFolder(Path(run))
    before = flat(folder.config())
    config = load_config(folder.config_file, overrides)
    now = flat(config)
    if wrong := [k for k in now if k in before and before[k] != now[k] and not k.startswith("eval.")]:
        raise UserError(f"{', '.join(wrong)}: only eval.* keys of a trained run can be changed")
    checkpoint = folder.last_checkpoint()
    prepared = Path(folder.facts().get("data", ""))
    # Prepared again if they are gone.
    dataset = Dataset.open(prepared) if (prepared / MANIFEST).exists() else prepare(config.data)
    folder.check_fingerprint(dataset.manifest.fingerprint)
    if not dataset.manifest.count(PARTS[part]):
        raise UserError(f"the data of {run} have no {part} part")
    cuda = torch.cuda.is_available() and config.train.device != "cpu"
    scorer, exchange, meta = _load(config, dataset, torch.device("cuda" if cuda else "cpu"), checkpoint)
    sums = evaluate_part(scorer, dataset, PARTS[part], config.eval, exchange)
    metrics = {f"{part}/{key}": value for key, value in sums.means().items()}
    return Evaluation(metrics, sums.users, sums.left_out, len(meta["history"]), config.train.epochs)


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
