"""Fixtures of several test folders: a small planted data set, prepared once, and one Ray for all cluster tests."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from distrec.core.config import parse
from distrec.core.section import without
from distrec.data.dataset import Dataset
from distrec.data.prepare import prepare
from distrec.losses import losses
from distrec.models import models
from distrec.sharding.initialization import initializers
from distrec.testing.ranks import close_groups
from distrec.training.config import Config
from distrec.training.run_folder import Result

EPOCHS = 10
SMALL: dict[str, dict[str, Any]] = {
    "data": {
        "buckets": 12,
        "valid_fraction": 0.1,
        "planted": {"users": 300, "items": 200, "interactions": 6000},
    },
    "model": {"dim": 16},
    "sampling": {"negatives": 20},
    "optim": {"lr": 0.01},
    "train": {"epochs": 2, "batch_size": 256, "workers": 1, "device": "cpu", "threads": 1},
}


@pytest.hookimpl(trylast=True)  # after plugins that choose an order of their own
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the tests of how Ray is found and started first: later ones find the Ray of `ray_cluster` running."""
    items.sort(key=lambda item: item.path.name != "test_connection.py")


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Seed torch, so that the random tensors of a test do not depend on the tests before it."""
    torch.manual_seed(0)


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Use one thread: on a busy machine small operations on several take ten times as long, in waiting for each other.

    Tests of threads set their number themselves, and set it back.
    """
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def process_groups() -> Iterator[None]:
    """End the process groups of `run_ranks` after the last test, and check their exit codes."""
    yield
    close_groups()


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """Start one Ray with room for four workers, 6 logical CPUs; `train` uses a Ray that is running."""
    from distrec.training.connection import ray_running

    with ray_running(workers=4):
        yield


@pytest.fixture(scope="session")
def cache(tmp_path_factory) -> Path:
    """Return the folder of the prepared data sets."""
    return tmp_path_factory.mktemp("prepared")


@pytest.fixture(scope="session")
def small(cache) -> Config:
    """Return a configuration that trains in seconds: 300 users, 200 items, 6,000 interactions, 12 buckets."""
    return changed(parse(Config, SMALL), data={"cache": str(cache)})


@pytest.fixture(scope="session")
def dataset(small) -> Dataset:
    """Return the prepared data of `small`."""
    return prepare(small.data, log=lambda text: None)


@pytest.fixture(scope="session")
def runs(tmp_path_factory) -> Path:
    """Return the folder of the run folders."""
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory) -> Path:
    """Return an empty sqlite store of MLflow, which takes 3 s of a core to create its tables; copy it."""
    from mlflow import MlflowClient

    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    MlflowClient(tracking_uri=f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture(scope="session")
def whole(ray_cluster, small, runs) -> tuple[Result, list[dict[str, Any]]]:
    """Train `small` on two workers without an interruption; return the result and the events."""
    from distrec.training.driver import train

    events: list[dict[str, Any]] = []
    return train(run_config(small, runs, "whole"), on_event=events.append), events


def run_config(small: Config, runs: Path, name: str, workers: int = 2, **sections: dict) -> Config:
    """Return the configuration of a run of `EPOCHS` epochs in the folder `runs`/`name`."""
    run = {"dir": str(runs / name), **sections.pop("run", {})}
    train = {"workers": workers, "epochs": EPOCHS, **sections.pop("train", {})}
    return changed(small, run=run, train=train, **sections)


def changed(config: Config, **sections: dict) -> Config:
    """Return a configuration with some keys changed: `changed(config, loss={"name": "bpr"})`.

    Options that another part than before does not have are dropped, as are sections that do nothing beside its model.
    """
    tree = config.model_dump(mode="json")
    update(tree, sections)
    parts = [(sections, tree, "loss", losses), (sections, tree, "model", models)]
    parts.append((sections.get("model", {}), tree["model"], "init", initializers))
    for given, section, key, family in parts:
        if "name" in given.get(key, {}):
            known = {"name", *family[section[key]["name"]].model_fields, *given[key]}
            section[key] = {option: value for option, value in section[key].items() if option in known}
    given = {*sections, *(f"{section}.{key}" for section, keys in sections.items() for key in keys)}
    return parse(Config, without(tree, {*models[tree["model"]["name"]].ignores} - given))


def update(tree: dict[str, Any], values: dict[str, Any]) -> None:
    """Set keys of nested dictionaries in place."""
    for key, value in values.items():
        if isinstance(value, dict):
            update(tree.setdefault(key, {}), value)
        else:
            tree[key] = value
