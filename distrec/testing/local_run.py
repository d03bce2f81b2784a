"""A whole run in this process, without Ray: its run folder is as `distrec train` leaves one, but for MLflow."""

from pathlib import Path

from distrec.training.config import Config
from distrec.training.run_folder import Result
from distrec.tuning.trial import run_trial


def train_locally(config: Config, path: Path) -> Result:
    """Train with one worker in the run folder `path`; return the result, which is written to it."""
    return run_trial(config.changed(train={"workers": 1}, run={"dir": path}))
