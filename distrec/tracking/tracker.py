"""Where a run is recorded. The driver calls the same five methods whether tracking is on or off."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from distrec.tracking.config import TrackingConfig
from distrec.tracking.report import Row


class Tracker:
    """Records nothing: tracking switched off. `MlflowTracker` overrides everything."""

    run_id: str | None = None
    """Names the run to continue it later; known once `start` has returned."""

    def start(self, config: Mapping[str, object], tags: Mapping[str, str], run_name: str) -> None:
        """Opens the run, or continues it. The only method that may raise."""

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Records figures at a step."""

    def log_table(self, rows: Sequence[Row], name: str = "results.md") -> None:
        """Records a table of results as a Markdown file."""

    def log_file(self, path: Path) -> None:
        """Records a file. It must stay where it is until `finish`."""

    def finish(self, status: str = "FINISHED") -> None:
        """Closes the run as FINISHED, FAILED or KILLED."""


def open_tracker(
    config: TrackingConfig, run_folder: Path, run_id: str | None = None, warn: Callable[[str], None] | None = None
) -> Tracker:
    """The tracker that a configuration asks for; not started yet.

    Args:
        config: where to record.
        run_folder: the folder of this run; the default store lies beside it.
        run_id: of an earlier part of the run, to continue it.
        warn: takes one line when the server is lost or back; by default it goes to the log.
    """
    if not config.enabled:
        return Tracker()
    # MLflow takes 1.5 s to import.
    from distrec.tracking.mlflow import MlflowTracker

    return MlflowTracker(config, run_folder, run_id, warn)
