"""Tracking URIs, resolved and checked before MLflow uses them: MLflow reports a wrong one late and at length."""

import os
import socket
import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit

from distrec.core.errors import UserError
from distrec.core.section import expand_user

_SQLITE = "sqlite:///"
_DEFAULT_PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}
"""Databases that MLflow can write to without a tracking server."""


def tracking_uri(configured: str | None, run_folder: Path) -> str:
    """Return the configured URI, or that of MLFLOW_TRACKING_URI, or the default. Paths of sqlite files become absolute.

    Raises:
        UserError: a URI that MLflow cannot use, or that names no file.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI") or None if configured is None else configured
    if uri is None:
        path = str(run_folder.absolute().parent / "mlflow.db")
        if "?" in path:
            raise UserError(f"MLflow cannot keep runs in {path}: an address ends at its ?; set tracking.uri")
        return _SQLITE + path
    key = "MLFLOW_TRACKING_URI" if configured is None else "tracking.uri"
    try:
        scheme = urlsplit(uri).scheme
    except ValueError as error:
        raise UserError(f"{key} {uri!r} is not an address: {error}") from None
    if scheme == "sqlite":
        path = uri.removeprefix(_SQLITE)
        if path in ("", uri, ":memory:"):
            raise UserError(f"{key} {uri!r} names no file; write sqlite:///path/mlflow.db")
        return f"{_SQLITE}{expand_user(path).absolute()}"
    if scheme in ("http", "https") or _database(uri) in _DEFAULT_PORTS or uri.startswith("databricks"):
        return uri
    raise UserError(
        f"{key} {public_uri(uri)!r} is not usable (MLflow no longer keeps runs in plain folders); "
        "write http://host:port or sqlite:///path/mlflow.db"
    )


def artifact_folder(uri: str, run_folder: Path) -> str | None:
    """Return the artifact folder of a new experiment, or None if a server decides. MLflow's default is ./mlruns."""
    if (file := sqlite_file(uri)) is not None:
        return (file.parent / "mlartifacts").as_uri()
    if _database(uri) in _DEFAULT_PORTS:
        return (run_folder.absolute().parent / "mlartifacts").as_uri()
    return None


def check_database(uri: str) -> None:
    """Connect to a database, if it is one. Raises at once, where MLflow would retry for a minute and a half."""
    address = urlsplit(uri)
    default_port = _DEFAULT_PORTS.get(_database(uri))
    if default_port and address.hostname:
        socket.create_connection((address.hostname, address.port or default_port), timeout=5).close()
    if (file := sqlite_file(uri)) is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(file, timeout=5)) as connection:
            connection.execute("begin immediate")
            connection.execute("pragma schema_version").fetchone()


def exists(uri: str) -> bool:
    """Return False for a sqlite file that is not there, as after a move of its folder."""
    file = sqlite_file(uri)
    return file is None or file.exists()


def sqlite_file(uri: str) -> Path | None:
    """Return the file of a sqlite address, which may end with options: sqlite:///runs.db?timeout=5. None for others."""
    return Path(uri.removeprefix(_SQLITE).partition("?")[0]) if uri.startswith(_SQLITE) else None


def public_uri(uri: str) -> str:
    """Return the URI without user and password."""
    netloc = urlsplit(uri).netloc
    return uri.replace(netloc, netloc.rpartition("@")[2], 1) if "@" in netloc else uri


def _database(uri: str) -> str:
    """Return `postgresql` for `postgresql+psycopg2://...`."""
    return urlsplit(uri).scheme.split("+")[0]
