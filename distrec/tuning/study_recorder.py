"""A study in a tracker: a parent run with the table and figures, and a child run for each run."""

import contextlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

from distrec.core.config import parse
from distrec.core.errors import UserError
from distrec.tracking import open_tracker
from distrec.tracking.config import TrackingConfig
from distrec.tracking.result_table import Row
from distrec.training.config import Config
from distrec.training.run_folder import Result
from distrec.tuning.study_config import StudyConfig
from distrec.tuning.study_run import StudyRun, curve_of

_FILE = "mlflow.json"
_PARENT = "mlflow.parentRunId"  # under this tag MLflow's page nests runs
_SOURCE = {"mlflow.source.name": "distrec study"}


class StudyRecorder:
    """Records runs once, also of a study that is called several times."""

    def __init__(self, config: TrackingConfig, folder: Path, note: Callable[[str], None]) -> None:
        """Raises UserError for a tracking URI that cannot be used."""
        self._config, self._note, self._file = config, note, folder / _FILE
        self._facts: dict[str, str] = {}
        self._failing = False
        with contextlib.suppress(OSError, ValueError):  # new, or torn: everything is recorded again
            self._facts = json.loads(self._file.read_text())
        known = self._facts.get("parent"), self._facts.get("uri")
        self.parent = open_tracker(config, folder, known[0], note, known[1])
        self._recorded = set(self._facts.get("runs", "").split())

    def start(self, study: StudyConfig, fingerprint: str, folder: Path) -> None:
        """Create or continue the parent run. Raises UserError."""
        self.parent.start(study, {"fingerprint": fingerprint, "folder": str(folder), **_SOURCE}, study.name)
        self._facts |= {"parent": str(self.parent.run_id), "uri": str(self.parent.uri)}
        self._save()

    def record(self, run: StudyRun, result: Result) -> None:
        """Record a finished run, if it is not recorded yet. A failure is noted, and no error: call it again later."""
        if not self._config.enabled or run.key in self._recorded:
            return
        child = open_tracker(self._config, run.folder, None, self._note, self.parent.uri)
        tags = {_PARENT: str(self.parent.run_id), "cell": run.cell.label, "folder": str(run.folder), **_SOURCE}
        try:
            child.start(parse(Config, run.tree), tags, f"{run.cell.label}, seed {run.seed}")
        except UserError as error:
            if not self._failing:
                self._note(f"tracking: {str(error).splitlines()[0]}; the study continues and records later")
            self._failing = True
            return
        self._failing = False
        for epoch in curve_of(run.folder):
            figures = {"train/loss": epoch["loss"], "train/epoch_s": epoch["seconds"]}
            figures |= {f"valid/{key}": value for key, value in epoch.get("metrics", {}).items()}
            child.log_metrics(figures, epoch["epoch"])
        child.log_metrics(result.metrics, result.epochs)
        child.finish()
        self._recorded.add(run.key)
        self._facts["runs"] = " ".join(sorted(self._recorded))
        self._save()

    def finish(self, metrics: dict[str, float], rows: Sequence[Row], files: Sequence[Path]) -> None:
        """Record the table and files in the parent run, and close it."""
        self.parent.log_metrics(metrics, 0)
        self.parent.log_table(rows)
        for file in files:
            self.parent.log_file(file)
        self.parent.finish()

    def _save(self) -> None:
        partial = self._file.with_suffix(".partial")
        partial.write_text(json.dumps(self._facts))
        partial.rename(self._file)
