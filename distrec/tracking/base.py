"""Where a run is recorded. The driver calls the same five methods whether tracking is on or off."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from distrec.tracking.result_table import Row


class Tracker:
    """Records nothing: tracking switched off. `MlflowTracker` overrides everything."""

    run_id: str | None = None
    """Names the run to continue it later; known once `start` has returned."""

    def start(self, config: Mapping[str, object], tags: Mapping[str, str], run_name: str) -> None:
        """Opens the run, or continues it. The only method that may raise."""

    def log_dataset(self, name: str, source: str, fingerprint: str, profile: Mapping[str, object]) -> None:
        """Records which data the run uses; `profile` holds its counts."""

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Records figures at a step."""

    def log_table(self, rows: Sequence[Row], name: str = "results.md") -> None:
        """Records a table of results as a Markdown file."""

    def log_file(self, path: Path) -> None:
        """Records a file. It must stay where it is until `finish`."""

    def finish(self, status: str = "FINISHED") -> None:
        """Closes the run as FINISHED, FAILED or KILLED."""
