"""Which file holds which part: finds the files of a source."""

import difflib
from dataclasses import dataclass
from pathlib import Path

from distrec.core.errors import UserError
from distrec.data.config import DataConfig
from distrec.data.readers.formats import SUFFIXES, format_of

_PARTS = ("train", "valid", "test")


@dataclass(frozen=True)
class Files:
    """The raw files of a data set. Without `valid` or `test` that part is carved out of `train`."""

    name: str
    train: Path
    valid: Path | None = None
    test: Path | None = None

    def present(self) -> list[tuple[str, Path]]:
        """(part, file) of the parts that have one, train first."""
        found = [("train", self.train), ("valid", self.valid), ("test", self.test)]
        return [(part, path) for part, path in found if path is not None]

    def describe(self, config: DataConfig) -> str:
        """One line: the files and their formats."""
        return ", ".join(f"{path} ({format_of(path, config)})" for _, path in self.present())


def find(config: DataConfig) -> Files:
    """The files of a source that is a file or a folder.

    In a folder, `train.*`, `valid.*` and `test.*` are the parts, also with a name before them as in
    `gowalla.train.inter`. A folder without a train file may hold one data file, which then is the whole.

    Raises:
        UserError: a missing file, two files for one part, a folder without data.
    """
    source = Path(config.source)
    check_exists(source, "data.source")
    if source.is_dir():
        files = _in_folder(source, config)
    else:
        files = Files(source.resolve().stem, source)
    for key, path in (("data.valid", config.valid), ("data.test", config.test)):
        if path is not None:
            check_exists(path, key)
    return Files(files.name, files.train, config.valid or files.valid, config.test or files.test)


def check_exists(path: Path, key: str) -> None:
    """Raises UserError with the nearest names in the folder if nothing stands at `path`."""
    if path.exists():
        return
    beside = [other.name for other in path.parent.iterdir()] if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, beside, n=3, cutoff=0.5)
    if near:
        hint = f"; nearest in {path.parent}: {', '.join(near)}"
    else:
        hint = "" if path.parent.is_dir() else f"; there is no folder {path.parent} either"
    raise UserError(f"{key}: there is no {path}{hint}")


def _in_folder(folder: Path, config: DataConfig) -> Files:
    kinds = [suffix for suffix, kind in SUFFIXES.items() if config.format in ("auto", kind)]
    candidates = sorted(path for path in folder.iterdir() if path.is_file() and path.suffix.lower() in kinds)
    parts = {part: _only([path for path in candidates if _part(path) == part], part) for part in _PARTS}
    rest = [path for path in candidates if _part(path) is None]
    train = parts["train"]
    if train is None and len(rest) == 1:
        train = rest[0]
    if train is None:
        names = ", ".join(path.name for path in rest)
        found = f"it holds {names}: name one as data.source" if rest else "it holds no data file"
        wanted = ", ".join(f"train{suffix}" for suffix in kinds)
        raise UserError(f"{folder} has no training part ({wanted}); {found}")
    return Files(folder.resolve().name, train, parts["valid"], parts["test"])


def _part(path: Path) -> str | None:
    """`train` of `train.txt` and of `gowalla.train.inter`; None of `interactions.txt`."""
    last = path.stem.rsplit(".", 1)[-1].lower()
    return last if last in _PARTS else None


def _only(paths: list[Path], part: str) -> Path | None:
    if len(paths) > 1:
        key = "data.source" if part == "train" else f"data.{part}"
        names = ", ".join(str(path) for path in paths)
        raise UserError(f"{len(paths)} files for the {part} part: {names}; set data.format, or name one file as {key}")
    return paths[0] if paths else None
