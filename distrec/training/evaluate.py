"""A trained run, looked at again: evaluates its last checkpoint in this process."""

from collections.abc import Sequence
from pathlib import Path

import torch

from distrec.core.config import flat, load
from distrec.core.errors import UserError
from distrec.data.dataset import MANIFEST, Dataset, Part
from distrec.data.prepare import prepare
from distrec.evaluation.metrics import RankingSums
from distrec.training.config import Config
from distrec.training.run_folder import RunFolder
from distrec.training.trainer import Trainer


def evaluate_run(run: Path, part: Part, overrides: Sequence[str] = ()) -> tuple[RankingSums, int, int]:
    """Metrics of the last checkpoint of a run, the epoch it was taken after, and how many the run was to have.

    Args:
        run: the run folder, of any number of workers.
        part: what to evaluate on.
        overrides: `eval.*` keys, as on the command line.

    Raises:
        UserError: no run, no checkpoint, other data than it was trained on, an override of anything but `eval.*`.
    """
    folder = RunFolder(run)
    before = flat(folder.config())
    config = load(Config, folder.config_file, overrides)
    if wrong := [key for key, value in flat(config).items() if before[key] != value and not key.startswith("eval.")]:
        raise UserError(f"{', '.join(wrong)}: a run that is trained can only be given other eval.* keys")
    checkpoint = folder.last_checkpoint()
    prepared = Path(folder.facts().get("data", ""))
    dataset = Dataset.open(prepared) if (prepared / MANIFEST).exists() else prepare(config.data)
    folder.check_fingerprint(dataset.manifest.fingerprint)
    if not dataset.manifest.count(part):
        raise UserError(f"the data of {run} have no {part.name.lower()} part")
    cuda = torch.cuda.is_available() and config.train.device != "cpu"
    trainer = Trainer(config, dataset, torch.device("cuda" if cuda else "cpu"))
    history = trainer.load(checkpoint)["history"]
    return trainer.evaluate(part), len(history), config.train.epochs
