"""Configuration of tracking."""

from distrec.core.section import Section


class TrackingConfig(Section):
    """Where to record runs."""

    uri: str | None = None
    """MLflow tracking URI: http://host:port of a server, sqlite:///path/mlflow.db, or a database URL. null: that of the
    environment variable MLFLOW_TRACKING_URI, or else the file mlflow.db beside the run folder, which all runs of the
    parent folder share."""
    experiment: str | None = None
    """MLflow experiment of the run. Created if it does not exist. null: that of the environment variable
    MLFLOW_EXPERIMENT_NAME, or else distrec."""
    enabled: bool = True
    """Record to MLflow. false: nothing is recorded, and MLflow is not imported."""
