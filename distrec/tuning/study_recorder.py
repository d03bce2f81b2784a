"""A study in a tracker: a parent run with the table and figures, and a child run for each run."""

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

from distrec.core.atomic_file import atomic_file
from distrec.tracking.base import epoch_figures
from distrec.tracking.config import TrackingConfig
from distrec.training.run_folder import Result
from distrec.tuning.parent_recorder import ParentRecorder
from distrec.tuning.study_config import StudyConfig
from distrec.tuning.study_run import StudyRun, curve_of

_FILE = "mlflow.json"


class StudyRecorder(ParentRecorder):
    """Records runs once, also of a study that is called several times."""

    kind = "study"
    source: ClassVar = {"mlflow.source.name": "distrec study"}

    def __init__(self, config: TrackingConfig, folder: Path, note: Callable[[str], None]) -> None:
        """Raises UserError for a tracking URI that cannot be used."""
        self._file = folder / _FILE
        self._facts: dict[str, str] = {}
        with contextlib.suppress(OSError, ValueError):  # new, or torn: everything is recorded again
            self._facts = json.loads(self._file.read_text())
        super().__init__(config, folder, self._facts.get("parent"), self._facts.get("uri"), note)
        self._recorded = set(self._facts.get("runs", "").split())

    def start(self, study: StudyConfig, fingerprint: str, folder: Path) -> None:
        """Create or continue the parent run. Raises UserError."""
        self.parent.start(study, {"fingerprint": fingerprint, "folder": str(folder), **self.source}, study.name)
        if self.parent.run_id is not None:
            self._facts |= {"parent": self.parent.run_id, "uri": str(self.parent.uri)}
            self._save()

    def record(self, run: StudyRun, result: Result) -> None:
        """Record a finished run, if it is not recorded yet. A failure is noted, and no error: call it again later."""
        if not self.tracking.enabled or run.key in self._recorded:
            return
        name, tags = f"{run.cell.label}, seed {run.seed}", {"cell": run.cell.label, "folder": str(run.folder)}
        child = self.open_child(name, run.tree, run.folder, tags)
        if child is None:
            return
        for epoch in curve_of(run.folder):
            child.log_metrics(epoch_figures(epoch), epoch["epoch"])
        child.log_metrics(result.metrics, result.epochs)
        child.finish()
        self._recorded.add(run.key)
        self._facts["runs"] = " ".join(sorted(self._recorded))
        self._save()

    def _save(self) -> None:
        with atomic_file(self._file) as partial:
            partial.write_text(json.dumps(self._facts))
