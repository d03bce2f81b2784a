"""What is recorded, and where."""

from distrec.core.config import Section


class TrackingConfig(Section):
    uri: str | None = None
    """MLflow tracking URI: http://host:port of a server, sqlite:///path/mlflow.db, or a database URL. None: the file
    `mlflow.db` beside the run folder, so that all runs of a folder are compared in one place."""
    experiment: str = "distrec"
    """MLflow experiment that the run belongs to; created if need be."""
    enabled: bool = True
    """False: nothing is sent to MLflow, and MLflow is not imported."""
