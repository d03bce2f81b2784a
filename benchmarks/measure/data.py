"""The interactions that are measured on: Gowalla where it is found, otherwise made data of its size."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from distrec.core.config import load
from distrec.data.dataset import Dataset, Part
from distrec.data.prepare import prepare
from distrec.training.config import Config

_ROOT = Path(__file__).parents[2]
_FOLDER = Path(os.environ.get("DISTREC_DATA", _ROOT.parent / "shared" / "data"))
_MADE = ("data.planted.users=29858", "data.planted.items=40981", "data.planted.interactions=1012660")


@dataclass(frozen=True)
class Data:
    """The training interactions, in the forms that ours and theirs read."""

    name: str
    folder: Path
    """Holds train.npz (user, item) for the rivals."""
    whole: Path
    """A LightGCN folder with all training interactions. Its test part is one pair: nobody is measured at evaluating."""
    thin: Path
    """The same with so few interactions as still name every user and every item: short epochs, tables of full size."""
    user: np.ndarray
    item: np.ndarray
    interactions: int
    """Of the whole, also where `whole` is only the slice."""

    @property
    def users(self) -> int:
        return int(self.user.max()) + 1

    @property
    def items(self) -> int:
        return int(self.item.max()) + 1

    def steps(self, batch_size: int) -> int:
        """Of an epoch of the whole."""
        return -(-self.interactions // batch_size)


def gather(folder: Path, quick: bool) -> Data:
    """Reads the data and writes those forms into `folder`. A quick look has the slice in place of the whole."""
    gowalla = _FOLDER / "gowalla"
    words = [f"data.source={gowalla}", "data.valid_fraction=0"] if gowalla.is_dir() else [*_MADE]
    dataset = prepare(load(Config, None, [*words, f"data.cache={folder}/raw"]).data)
    user, item = _coded(dataset, Part.TRAIN)
    test = [array[:1] for array in _coded(dataset, Part.TEST)]
    name = "Gowalla" if gowalla.is_dir() else "made data of Gowalla's size (DISTREC_DATA names the folder of the real)"
    interactions = len(user)
    kept = np.union1d(np.unique(user, return_index=True)[1], np.unique(item, return_index=True)[1])
    _write_lightgcn(folder / "thin", (user[kept], item[kept]), test)
    if quick:
        user, item, name = user[kept], item[kept], f"{name}, a slice of {len(kept):,} interactions"
    else:
        _write_lightgcn(folder / "whole", (user, item), test)
    np.savez(folder / "train.npz", user=user, item=item)
    return Data(name, folder, folder / ("thin" if quick else "whole"), folder / "thin", user, item, interactions)


def _coded(dataset: Dataset, part: Part) -> tuple[np.ndarray, np.ndarray]:
    """The interactions of a part by user, numbered without the users and items that nobody trains on."""
    user_index, item_index = np.cumsum(dataset.user_degrees() > 0) - 1, np.cumsum(dataset.item_degrees() > 0) - 1
    user, item = dataset.interactions(part, range(dataset.manifest.buckets))
    order = np.lexsort((item, user))
    return user_index[user[order]].astype(np.int32), item_index[item[order]].astype(np.int32)


def _write_lightgcn(folder: Path, train: Sequence[np.ndarray], test: Sequence[np.ndarray]) -> None:
    """One line a user; pairs are ordered by user."""
    folder.mkdir()
    for name, (user, item) in (("train.txt", train), ("test.txt", test)):
        users, starts = np.unique(user, return_index=True)
        parts = np.split(item, starts[1:])
        lines = [f"{u} {' '.join(map(str, own.tolist()))}" for u, own in zip(users.tolist(), parts, strict=True)]
        (folder / name).write_text("\n".join(lines) + "\n")
