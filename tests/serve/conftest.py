"""Whole runs of small models, trained in this process."""

from pathlib import Path

import pytest

from distrec.testing.local_run import train_locally
from tests.conftest import changed

MODELS = {
    "mf": {},
    "mf-dot": {"model": {"similarity": "dot"}, "loss": {"name": "bpr"}},
    "lightgcn": {"model": {"name": "lightgcn"}},
    "simplex": {"model": {"name": "simplex"}},
    "mlp": {"model": {"name": "mlp"}},
    "ials": {"model": {"name": "ials", "dim": 8}},
    "ease": {"model": {"name": "ease"}},
    "itemknn": {"model": {"name": "itemknn"}},
    "pop": {"model": {"name": "pop"}},
}


@pytest.fixture(scope="session")
def run_of(small, tmp_path_factory):
    """Return a function that gives the run folder of one of `MODELS`, trained for two epochs when first asked for."""
    folder, done = tmp_path_factory.mktemp("serve"), {}

    def get(name: str) -> Path:
        if name not in done:
            done[name] = folder / name
            config = changed(small, run={"dir": str(done[name])}, tracking={"enabled": False}, **MODELS[name])
            train_locally(config, done[name])
        return done[name]

    return get
