"""A parent run in a tracker, and child runs that MLflow's page shows under it."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from distrec.core.config import parse
from distrec.core.errors import UserError
from distrec.tracking import open_tracker
from distrec.tracking.base import Tracker
from distrec.tracking.config import TrackingConfig
from distrec.tracking.result_table import Row
from distrec.training.config import Config

_PARENT = "mlflow.parentRunId"


class ParentRecorder:
    """Base of the recorders of searches and studies."""

    kind: ClassVar[str]
    """`search` or `study`, for messages."""
    source: ClassVar[Mapping[str, str]]
    """Tags of all runs that name the command."""

    def __init__(
        self, config: TrackingConfig, folder: Path, run_id: str | None, uri: str | None, note: Callable[[str], None]
    ) -> None:
        """`run_id`, `uri`: those of the parent run to continue. Raises UserError for a URI that cannot be used."""
        self.tracking, self.note = config, note
        self.parent = open_tracker(config, folder, run_id, note, uri)
        self._failing = False

    def open_child(
        self, name: str, tree: dict[str, Any], folder: Path, tags: Mapping[str, str], run_id: str | None = None
    ) -> Tracker | None:
        """Create the run of a training, or continue it.

        Returns:
            Its tracker; None after a failure, which may not end a search or study. The first is noted: try again later.
        """
        try:
            child = open_tracker(self.tracking, folder, run_id, self.note, self.parent.uri)
            child.start(parse(Config, tree), {_PARENT: str(self.parent.run_id), **tags, **self.source}, name)
        except UserError as error:
            if not self._failing:
                self.note(f"tracking: {str(error).splitlines()[0]}; the {self.kind} continues and records later")
            self._failing = True
            return None
        self._failing = False
        return child

    def finish(self, metrics: Mapping[str, float], rows: Sequence[Row], files: Sequence[Path]) -> None:
        """Record the result in the parent run, and close it."""
        self.parent.log_result(metrics, rows, files)
        self.parent.finish()
