"""A search in a tracker: a parent run, and a child run for each trial and refit."""

import contextlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from distrec.core.config import parse
from distrec.core.errors import UserError
from distrec.tracking import open_tracker
from distrec.tracking.base import Tracker
from distrec.tracking.result_table import Row
from distrec.training.config import Config
from distrec.tuning.config import SearchConfig
from distrec.tuning.folder import SearchFolder
from distrec.tuning.journal import FAILED, Record

_CHILDREN = "children.json"  # {name of a trial: [id of its run, whether it is complete]}
_PARENT = "mlflow.parentRunId"  # under this tag MLflow's page nests runs
_SOURCE = {"mlflow.source.name": "distrec tune"}


class Recorder:
    """Records what the journal holds. After a resume it records what is missing; epochs may be recorded twice."""

    def __init__(
        self, config: SearchConfig, folder: SearchFolder, facts: dict[str, Any], note: Callable[[str], None]
    ) -> None:
        """`facts`: those of the folder. Raises UserError for a tracking URI that cannot be used."""
        self._config, self._folder, self._note = config, folder, note
        self.parent = open_tracker(config.tracking, folder.path, facts.get("mlflow_run"), note, facts.get("mlflow_uri"))
        self._children: dict[str, Tracker] = {}
        self._logged: dict[str, int] = {}
        self._failing = False
        self._file = folder.path / _CHILDREN
        self._known: dict[str, tuple[str, bool]] = {}
        with contextlib.suppress(OSError, ValueError):  # new, or torn: the children are recorded again
            self._known = json.loads(self._file.read_text())

    def start(self, fingerprint: str) -> dict[str, Any]:
        """Create or continue the parent run. Return the facts with which to continue it. Raises UserError."""
        tags = {"fingerprint": fingerprint, "folder": str(self._folder.path), **_SOURCE}
        self.parent.start(self._config, tags, self._folder.path.name)
        return {"mlflow_run": self.parent.run_id, "mlflow_uri": self.parent.uri}

    def update(self, record: Record, tree: dict[str, Any]) -> None:
        """Record what is new of a trial, whose configuration is `tree`."""
        name = record.name
        complete = self._known.get(name, ("", False))[1]
        if not self._config.tracking.enabled or complete or record.reason == "invalid":
            return
        try:
            child = self._children.get(name) or self._open(name, tree)
        except UserError as error:  # no failure of tracking may end a search; it is tried again at its next epoch
            if not self._failing:
                self._note(f"tracking: {str(error).splitlines()[0]}; the search continues and records later")
            self._failing = True
            return
        self._failing = False
        for report in record.reports[self._logged.get(name, 0) :]:
            figures = {"train/loss": report["loss"], "train/epoch_s": report["seconds"]}
            figures |= {f"valid/{key}": value for key, value in report.get("metrics", {}).items()}
            child.log_metrics(figures, report["epoch"])
        self._logged[name] = len(record.reports)
        if record.end is not None:
            self._end(record, child)

    def _open(self, name: str, tree: dict[str, Any]) -> Tracker:
        run_id = self._known.get(name, (None, False))[0]
        config = parse(Config, tree)
        child = open_tracker(self._config.tracking, self._folder.trial(name), run_id, self._note, self.parent.uri)
        tags = {_PARENT: str(self.parent.run_id), "trial": name, **_SOURCE}
        child.start(config, tags, name)
        self._children[name] = child
        self._save(name, child, False)
        return child

    def _end(self, record: Record, child: Tracker) -> None:
        end = record.end or {}
        if point := record.best(self._config.metric):
            child.log_metrics({f"best/{self._config.metric}": point[1], "best/epoch": point[0]}, point[0])
        child.log_metrics(end.get("metrics", {}), record.epochs)
        child.log_tags({"ended": record.reason} | ({"message": end["text"]} if "text" in end else {}))
        child.finish("FAILED" if record.reason in FAILED else "FINISHED")
        self._save(record.name, child, True)
        del self._children[record.name]

    def _save(self, name: str, child: Tracker, complete: bool) -> None:
        self._known[name] = str(child.run_id), complete
        partial = self._file.with_suffix(".partial")
        partial.write_text(json.dumps(self._known))
        partial.rename(self._file)

    def finish(self, metrics: dict[str, float], rows: Sequence[Row], files: Sequence[Path]) -> None:
        """Record the result in the parent run, and close it."""
        self.parent.log_metrics(metrics, 0)
        self.parent.log_table(rows)
        for file in files:
            self.parent.log_file(file)
        self.parent.finish()

    def abandon(self, status: str) -> None:
        """Close the runs that are open as FAILED or KILLED."""
        for child in self._children.values():
            child.finish(status)
        self.parent.finish(status)
