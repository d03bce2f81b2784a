"""The folder of a search.

- `search.yaml`: everything that it depends on; `run.json`: facts, as of a run.
- `journal.jsonl`: what it has done; see `distrec/tuning/journal.py`.
- `trials/0007/`, `refits/...`: the run folders. Checkpoints of trials are deleted when they end.
- `best.yaml`: run file of the best configuration; `table.md`, `figures/`, `report.html`: what was found.
"""

from pathlib import Path
from typing import ClassVar

from distrec.training.config import Config
from distrec.training.run_folder import RunFolder, remove_checkpoints
from distrec.tuning.config import SearchConfig
from distrec.tuning.journal import REFIT

JOURNAL, TABLE, FIGURES, PAGE, BEST_CONFIG = "journal.jsonl", "table.md", "figures", "report.html", "best.yaml"


class SearchFolder(RunFolder):
    """The folder of one search, chosen by `run.dir` and `run.resume` as that of a run."""

    config_name: ClassVar[str] = "search.yaml"
    config_kind: ClassVar[type[Config]] = SearchConfig
    continued: ClassVar[tuple[str, ...]] = tuple(
        f"tune.{key}" for key in ("trials", "minutes", "epochs", "refit_seeds", "resources", "concurrent")
    )

    @property
    def journal(self) -> Path:
        return self.path / JOURNAL

    def search_config(self) -> SearchConfig:
        """Return the configuration. Raise UserError if this is not the folder of a search."""
        config = self.config()
        assert isinstance(config, SearchConfig)
        return config

    def trial(self, name: str) -> Path:
        """Return the run folder of a trial or refit."""
        return self.path / ("refits" if name.startswith(REFIT) else "trials") / name

    def discard_checkpoints(self, name: str) -> None:
        """Delete the checkpoints of a trial."""
        remove_checkpoints(self.trial(name))
