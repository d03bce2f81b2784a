"""Experiment tracking in MLflow, step timing, and tables of results."""

from collections.abc import Callable
from pathlib import Path

from distrec.tracking.base import Tracker
from distrec.tracking.config import TrackingConfig


def open_tracker(
    config: TrackingConfig,
    run_folder: Path,
    run_id: str | None = None,
    warn: Callable[[str], None] | None = None,
    run_uri: str | None = None,
) -> Tracker:
    """Return the configured tracker, not started yet.

    Args:
        config: where to record.
        run_folder: folder of this run; the default store lies beside it.
        run_id: id of the MLflow run to continue.
        warn: called with one line when MLflow fails and when it works again; by default it writes to the log.
        run_uri: store of that run, for a configuration that names none.

    Raises:
        UserError: a tracking URI that MLflow cannot use.
    """
    if not config.enabled:
        return Tracker()
    # Deferred: MLflow takes 1.5 s to import.
    from distrec.tracking.mlflow import MlflowTracker

    return MlflowTracker(config, run_folder, run_id, warn, run_uri)
