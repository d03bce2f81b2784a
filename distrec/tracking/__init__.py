"""Where numbers go: MLflow, the terminal, tables."""

from collections.abc import Callable
from pathlib import Path

from distrec.tracking.base import Tracker
from distrec.tracking.config import TrackingConfig


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
