"""Find the raw files of a data set: which file holds which part."""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from distrec.core.errors import UserError
from distrec.data.config import DataConfig
from distrec.data.dataset import Part
from distrec.data.readers.formats import SUFFIXES, format_of


@dataclass(frozen=True)
class SourceFiles:
    """Name of a data set and the file of each part that has one; parts without a file are held out of training."""

    name: str
    paths: Mapping[Part, Path]

    def describe(self, config: DataConfig) -> str:
        """Return one line with the files and their formats."""
        return ", ".join(f"{path} ({format_of(path, config)})" for path in self.paths.values())


def find(config: DataConfig) -> SourceFiles:
    """Find the files of a source that is a file or a folder.

    In a folder the parts are `train.*`, `valid.*` and `test.*`, also after a name as in `gowalla.train.inter`. If there
    is no train file and exactly one other data file, that file is the training part.

    Raises:
        UserError: a missing file, two files for one part, a folder without data.
    """
    source = Path(config.source)
    _check_exists(source, "data.source")
    paths = _find_in_folder(source, config) if source.is_dir() else {Part.TRAIN: source}
    for part, path in ((Part.VALID, config.valid), (Part.TEST, config.test)):
        if path is not None:
            _check_exists(path, f"data.{part.name.lower()}")
            paths[part] = path
    name = source.resolve().name if source.is_dir() else source.resolve().stem
    return SourceFiles(name, dict(sorted(paths.items())))


def _check_exists(path: Path, key: str) -> None:
    """Raise UserError with the most similar names in the folder if `path` does not exist."""
    if path.exists():
        return
    siblings = [other.name for other in path.parent.iterdir()] if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, siblings, n=3, cutoff=0.5)
    if near:
        hint = f"; nearest in {path.parent}: {', '.join(near)}"
    else:
        hint = "" if path.parent.is_dir() else f"; there is no folder {path.parent} either"
    raise UserError(f"{key}: there is no {path}{hint}")


def _find_in_folder(folder: Path, config: DataConfig) -> dict[Part, Path]:
    suffixes = [suffix for suffix, name in SUFFIXES.items() if config.format in ("auto", name)]
    files = sorted(path for path in folder.iterdir() if path.is_file() and path.suffix.lower() in suffixes)
    found = {part: [path for path in files if _part_of(path) == part] for part in Part}
    for part, paths in found.items():
        if len(paths) > 1:
            key = "data.source" if part == Part.TRAIN else f"data.{part.name.lower()}"
            raise UserError(
                f"{len(paths)} files for the {part.name.lower()} part: {', '.join(map(str, paths))}; "
                f"set data.format, or name one file as {key}"
            )
    others = [path for path in files if _part_of(path) is None]
    if not found[Part.TRAIN]:
        if len(others) != 1:
            names = ", ".join(path.name for path in others)
            content = f"it holds {names}: name one as data.source" if others else "it holds no data file"
            wanted = ", ".join(f"train{suffix}" for suffix in suffixes)
            raise UserError(f"{folder} has no training part ({wanted}); {content}")
        found[Part.TRAIN] = others
    return {part: paths[0] for part, paths in found.items() if paths}


def _part_of(path: Path) -> Part | None:
    """Return TRAIN for `train.txt` and `gowalla.train.inter`, None for `interactions.txt`."""
    return Part.__members__.get(path.stem.rsplit(".", 1)[-1].upper())
