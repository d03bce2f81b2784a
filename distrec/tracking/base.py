"""Interface of trackers; the base class records nothing. Figures of an epoch by the names that all runs record."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from distrec.core.section import Section
from distrec.tracking.result_table import Row


class Tracker:
    """Tracker that records nothing, for `tracking.enabled=false`. `MlflowTracker` overrides every method."""

    run_id: str | None = None
    """Id with which to continue the run later; set by `start`."""
    uri: str | None = None
    """Address of the store, with an absolute path if it is a file."""

    @property
    def destination(self) -> str:
        """Where runs are recorded, for the log."""
        return "nothing is recorded (tracking.enabled=false)"

    def check(self) -> str:
        """Return that the store can be used, without creating one. Raise UserError if it cannot."""
        return "no store is needed"

    def start(self, config: Section, tags: Mapping[str, str], run_name: str) -> None:
        """Create the run, or continue it. No method but this and `check` may raise."""

    def log_dataset(self, name: str, source: str, fingerprint: str, profile: Mapping[str, object]) -> None:
        """Record the data set of the run; `profile` holds its counts."""

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Record metrics at a step."""

    def log_tags(self, tags: Mapping[str, str]) -> None:
        """Record tags."""

    def log_table(self, rows: Sequence[Row]) -> None:
        """Record a table of results as the Markdown file `results.md`."""

    def log_file(self, path: Path) -> None:
        """Record a file. It must not be moved or deleted before `finish`."""

    def log_result(self, metrics: Mapping[str, float], rows: Sequence[Row], files: Sequence[Path]) -> None:
        """Record the result of a search or study: metrics, a table and files."""
        self.log_metrics(metrics, 0)
        self.log_table(rows)
        for file in files:
            self.log_file(file)

    def finish(self, status: str = "FINISHED") -> None:
        """Close the run as FINISHED, FAILED or KILLED."""


def epoch_figures(record: Mapping[str, Any]) -> dict[str, float]:
    """Return loss, time and validation metrics of an epoch, of an event or of the history, by name."""
    figures = {"train/loss": record["loss"], "train/epoch_s": record["seconds"]}
    return figures | {f"valid/{key}": value for key, value in record.get("metrics", {}).items()}
