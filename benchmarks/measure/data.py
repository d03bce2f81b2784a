"""The interactions of the benchmarks: Gowalla where available, else synthetic data of its size."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from distrec.data.dataset import Dataset, Part
from distrec.data.prepare import prepare
from distrec.training.config import load_config

DATA_FOLDER = Path(os.environ.get("DISTREC_DATA", "data"))
"""Holds the public data sets: gowalla/, ml-1m/, ..."""
_SYNTHETIC = ["data.planted.users=29858", "data.planted.items=40981", "data.planted.interactions=1012660"]


@dataclass(frozen=True)
class Data:
    """The training interactions, in the formats of distrec and of the rivals."""

    name: str
    folder: Path
    """Holds train.npz (user, item) for the rivals."""
    whole: Path
    """LightGCN folder with all training interactions. Its test part is one pair, as evaluation is not measured."""
    thin: Path
    """A slice with just enough interactions to contain every user and item: short epochs, tables of full size."""
    user: np.ndarray
    item: np.ndarray
    interactions: int
    """Of the whole data, also if `whole` is only the slice."""

    @property
    def users(self) -> int:
        """Number of users."""
        return int(self.user.max()) + 1

    @property
    def items(self) -> int:
        """Number of items."""
        return int(self.item.max()) + 1

    def steps(self, batch_size: int) -> int:
        """Return the steps of an epoch of the whole data."""
        return -(-self.interactions // batch_size)


def source_settings() -> tuple[str, list[str]]:
    """Return the name and the settings of the data: of Gowalla if its folder exists, else of synthetic data."""
    gowalla = DATA_FOLDER / "gowalla"
    if gowalla.is_dir():
        return "Gowalla", [f"data.source={gowalla}", "data.valid_fraction=0"]
    return "synthetic data of Gowalla's size (DISTREC_DATA names the folder of the real data)", list(_SYNTHETIC)


def prepare_data(folder: Path, quick: bool) -> Data:
    """Write the data in all formats into `folder`. With `quick`, the slice takes the place of the whole."""
    name, settings = source_settings()
    dataset = prepare(load_config(None, [*settings, f"data.cache={folder}/raw"]).data)
    user, item = _dense_ids(dataset, Part.TRAIN)
    test = [array[:1] for array in _dense_ids(dataset, Part.TEST)]
    interactions = len(user)
    kept = np.union1d(np.unique(user, return_index=True)[1], np.unique(item, return_index=True)[1])
    _write_lightgcn(folder / "thin", (user[kept], item[kept]), test)
    if quick:
        user, item, name = user[kept], item[kept], f"{name}, a slice of {len(kept):,} interactions"
    else:
        _write_lightgcn(folder / "whole", (user, item), test)
    np.savez(folder / "train.npz", user=user, item=item)
    return Data(name, folder, folder / ("thin" if quick else "whole"), folder / "thin", user, item, interactions)


def _dense_ids(dataset: Dataset, part: Part) -> tuple[np.ndarray, np.ndarray]:
    """Return the (user, item) pairs of a part, ordered by user, renumbered without rows that have no training pair."""
    user_index, item_index = np.cumsum(dataset.user_degrees() > 0) - 1, np.cumsum(dataset.item_degrees() > 0) - 1
    user, item = dataset.interactions(part, range(dataset.manifest.buckets))
    order = np.lexsort((item, user))
    return user_index[user[order]].astype(np.int32), item_index[item[order]].astype(np.int32)


def _write_lightgcn(folder: Path, train: Sequence[np.ndarray], test: Sequence[np.ndarray]) -> None:
    """Write one line a user. Pairs are ordered by user."""
    folder.mkdir()
    for name, (user, item) in (("train.txt", train), ("test.txt", test)):
        users, starts = np.unique(user, return_index=True)
        parts = np.split(item, starts[1:])
        lines = [f"{u} {' '.join(map(str, own.tolist()))}" for u, own in zip(users.tolist(), parts, strict=True)]
        (folder / name).write_text("\n".join(lines) + "\n")
