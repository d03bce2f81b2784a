"""Where records may be kept: URIs read, checked and tried out without MLflow, which is slow to say what is wrong."""

import socket
import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit

from distrec.core.errors import UserError

_DATABASES = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}
"""Kinds that MLflow may write to without a server of its own, and their usual ports."""


def tracking_uri(uri: str | None, run_folder: Path) -> str:
    """The configured URI, checked; a sqlite file with its absolute path, or the current folder would decide."""
    if uri is None:
        return f"sqlite:///{run_folder.absolute().parent / 'mlflow.db'}"
    scheme = urlsplit(uri).scheme
    if scheme == "sqlite":
        path = uri.removeprefix("sqlite:///")
        if not path or path == uri or path == ":memory:":
            raise UserError(f"tracking.uri {uri!r} names no file; write sqlite:///path/mlflow.db")
        return f"sqlite:///{Path(path).absolute()}"
    if scheme in ("http", "https") or scheme.split("+")[0] in _DATABASES or uri.startswith("databricks"):
        return uri
    raise UserError(
        f"tracking.uri {public_uri(uri)!r} is not usable (MLflow no longer keeps runs in plain folders); "
        "write http://host:port or sqlite:///path/mlflow.db"
    )


def artifact_folder(uri: str, run_folder: Path) -> str | None:
    """Where a new experiment keeps its files. A server decides itself; a bare database would use ./mlruns."""
    if uri.startswith("sqlite:///"):
        return (Path(uri.removeprefix("sqlite:///")).parent / "mlartifacts").as_uri()
    if urlsplit(uri).scheme.split("+")[0] in _DATABASES:
        return (run_folder.absolute().parent / "mlartifacts").as_uri()
    return None


def check_database(uri: str) -> None:
    """Opens a database before MLflow does, which would try a wrong one for a minute and a half."""
    address = urlsplit(uri)
    usual_port = _DATABASES.get(address.scheme.split("+")[0])
    if usual_port and address.hostname:
        socket.create_connection((address.hostname, address.port or usual_port), timeout=5).close()
    if uri.startswith("sqlite:///"):
        path = Path(uri.removeprefix("sqlite:///"))
        path.parent.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(path, timeout=5)) as connection:
            connection.execute("begin immediate")
            connection.execute("pragma schema_version").fetchone()


def public_uri(uri: str) -> str:
    """The URI without user and password."""
    netloc = urlsplit(uri).netloc
    return uri.replace(netloc, netloc.rpartition("@")[2], 1) if "@" in netloc else uri
