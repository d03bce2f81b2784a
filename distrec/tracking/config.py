"""Configuration of tracking."""

from distrec.core.config import Section


class TrackingConfig(Section):
    """Where to record runs."""

    uri: str | None = None
    """MLflow tracking URI: http://host:port of a server, sqlite:///path/mlflow.db, or a database URL. null: the file
    mlflow.db beside the run folder, which all runs of the parent folder share."""
    experiment: str = "distrec"
    """MLflow experiment of the run. Created if it does not exist."""
    enabled: bool = True
    """Record to MLflow. false: nothing is recorded, and MLflow is not imported."""
