"""A search in a tracker: a parent run, and a child run for each trial and refit."""

import contextlib
import json
from collections.abc import Callable
from typing import Any, ClassVar

from distrec.core.atomic_file import atomic_file
from distrec.tracking.base import Tracker, epoch_figures
from distrec.tuning.config import SearchConfig
from distrec.tuning.folder import SearchFolder
from distrec.tuning.journal import FAILED, Record
from distrec.tuning.parent_recorder import ParentRecorder

_CHILDREN = "children.json"  # {name of a trial: [id of its run, whether it is complete]}


class Recorder(ParentRecorder):
    """Records what the journal holds. After a resume it records what is missing; epochs may be recorded twice."""

    kind = "search"
    source: ClassVar = {"mlflow.source.name": "distrec tune"}

    def __init__(
        self, config: SearchConfig, folder: SearchFolder, facts: dict[str, Any], note: Callable[[str], None]
    ) -> None:
        """`facts`: those of the folder. Raises UserError for a tracking URI that cannot be used."""
        super().__init__(config.tracking, folder.path, facts.get("mlflow_run"), facts.get("mlflow_uri"), note)
        self._config, self._folder = config, folder
        self._children: dict[str, Tracker] = {}
        self._logged: dict[str, int] = {}
        self._file = folder.path / _CHILDREN
        self._known: dict[str, tuple[str, bool]] = {}
        with contextlib.suppress(OSError, ValueError):  # new, or torn: the children are recorded again
            self._known = json.loads(self._file.read_text())

    def start(self, fingerprint: str) -> dict[str, Any]:
        """Create or continue the parent run. Return the facts with which to continue it. Raises UserError."""
        tags = {"fingerprint": fingerprint, "folder": str(self._folder.path), **self.source}
        self.parent.start(self._config, tags, self._folder.path.name)
        return {"mlflow_run": self.parent.run_id, "mlflow_uri": self.parent.uri}

    def update(self, record: Record, tree: Callable[[], dict[str, Any]]) -> None:
        """Record what is new of a trial, whose configuration `tree` returns; after a failure at the next call."""
        name = record.name
        complete = self._known.get(name, ("", False))[1]
        if not self._config.tracking.enabled or complete or record.reason == "invalid":
            return
        child = self._children.get(name) or self._open(name, tree())
        if child is None:
            return
        logged = self._logged.get(name, 0)
        ended, reports = record.end is not None, record.reports[logged:]  # the search's thread adds to both meanwhile
        for report in reports:
            child.log_metrics(epoch_figures(report), report["epoch"])
        self._logged[name] = logged + len(reports)
        if ended:
            self._end(record, child)

    def _open(self, name: str, tree: dict[str, Any]) -> Tracker | None:
        run_id = self._known.get(name, (None, False))[0]
        child = self.open_child(name, tree, self._folder.trial(name), {"trial": name}, run_id)
        if child is not None:
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
        with atomic_file(self._file) as partial:
            partial.write_text(json.dumps(self._known))

    def abandon(self, status: str) -> None:
        """Close the runs that are open as FAILED or KILLED."""
        for child in self._children.values():
            child.finish(status)
        self.parent.finish(status)
