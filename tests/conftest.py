"""What several test folders share: a small planted data set, prepared once."""

from pathlib import Path

import pytest
import torch

from distrec.core.config import parse
from distrec.data.dataset import Dataset
from distrec.data.prepare import prepare
from distrec.training.config import Config


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Random tensors of a test do not depend on which tests ran before it."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("prepared")


@pytest.fixture(scope="session")
def small(cache) -> Config:
    """A configuration that trains in seconds: 300 users, 200 items, 6,000 interactions, 12 buckets."""
    return parse(
        Config,
        {
            "data": {
                "buckets": 12,
                "cache": str(cache),
                "valid_fraction": 0.1,
                "planted": {"users": 300, "items": 200, "interactions": 6000},
            },
            "model": {"dim": 16},
            "sampling": {"negatives": 20},
            "optim": {"lr": 0.01},
            "train": {"epochs": 2, "batch_size": 256, "workers": 1, "device": "cpu"},
        },
    )


@pytest.fixture(scope="session")
def dataset(small) -> Dataset:
    return prepare(small.data, log=lambda text: None)


def changed(config: Config, **sections: dict) -> Config:
    """A configuration with some keys changed: `changed(config, loss={"name": "bpr"})`."""
    tree = config.model_dump(mode="json")
    for section, values in sections.items():
        for key, value in values.items():
            if isinstance(value, dict):
                tree[section][key].update(value)
            else:
                tree[section][key] = value
    return parse(Config, tree)
