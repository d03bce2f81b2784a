"""Find the raw files of a data set: which files hold which part."""

import difflib
import glob
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from distrec.core.errors import UserError
from distrec.data.config import DataConfig
from distrec.data.dataset import Part
from distrec.data.readers.contents import plain_name
from distrec.data.readers.formats import PartFiles, recognise_parts
from distrec.data.readers.recognise import SUFFIXES

_SUFFIXES_OF = {"lightgcn": (".txt",), "recbole": (".inter",), "csv": (".csv", ".tsv"), "parquet": (".parquet", ".pq")}

_ALIASES = {"VAL": Part.VALID, "VALIDATION": Part.VALID, "DEV": Part.VALID, "TRAINING": Part.TRAIN}

_Found = tuple[Path, tuple[Path, ...]]  # what was named or found, and the files that it stands for


@dataclass(frozen=True)
class SourceFiles:
    """Name of a data set and the files of each part that has any; other parts are held out of training."""

    name: str
    parts: Mapping[Part, PartFiles]
    unread: tuple[str, ...] = ()
    """Names of data files in the source folder that belong to no part."""

    def describe(self) -> str:
        """Return one line with the files and their formats."""
        return ", ".join(f"{part.path} ({part.layout.format})" for part in self.parts.values())


def find(config: DataConfig) -> SourceFiles:
    """Find the files of a source that is a file, a folder or a pattern, and recognise their formats.

    In a folder the parts are `train.*`, `valid.*` and `test.*`, files or folders of part files, also after a name as in
    `gowalla.train.inter`. If there is no train file, the one other data file, or part files, are the training part.

    Raises:
        UserError: a missing file, two files for one part, a folder without data, lines that fit two formats.
    """
    source = Path(config.source)
    found = _find_in_folder(source, config) if source.is_dir() else {Part.TRAIN: _files(source, "data.source")}
    for part, path in ((Part.VALID, config.valid), (Part.TEST, config.test)):
        if path is not None:
            found[part] = _files(path, f"data.{part.name.lower()}")
    if source.is_dir():
        name = source.resolve().name
    else:
        name = plain_name(source.resolve()).stem if source.exists() else found[Part.TRAIN][1][0].resolve().parent.name
    used = {path for part in found.values() for path in part[1]}
    others = sorted(source.iterdir()) if source.is_dir() else []
    unread = tuple(path.name for path in others if _is_data(path) and path not in used)
    return SourceFiles(name or "data", recognise_parts(dict(sorted(found.items())), config), unread)


def _files(path: Path, key: str) -> _Found:
    """Return the files that a path stands for: itself, the part files of a folder, what matches a pattern.

    Raises UserError, with the most similar names in the folder, if there are none.
    """
    if path.is_dir():
        if files := _part_files(path):
            return path, files
        raise UserError(f"{key}: {path} is a folder without data files")
    if path.exists():
        return path, (path,)
    if glob.has_magic(str(path)):
        matches = sorted(Path(match) for match in glob.glob(str(path), recursive=True))
        if files := tuple(match for match in matches if match.is_file() and not _is_hidden(match)):
            return path, files
        raise UserError(f"{key}: no file matches {path}")
    if path.is_symlink():
        raise UserError(f"{key}: {path} is a link to {path.readlink()}, which does not exist")
    siblings = [other.name for other in path.parent.iterdir()] if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, siblings, n=3, cutoff=0.5)
    if near:
        hint = f"; nearest in {path.parent}: {', '.join(near)}"
    else:
        hint = "" if path.parent.is_dir() else f"; there is no folder {path.parent} either"
    raise UserError(f"{key}: there is no {path}{hint}")


def _find_in_folder(folder: Path, config: DataConfig) -> dict[Part, _Found]:
    present = sorted(
        path for path in folder.iterdir() if _is_data(path) or (path.is_dir() and _part_of(path) is not None)
    )
    wanted = _SUFFIXES_OF.get(config.format, SUFFIXES)
    files = [path for path in present if plain_name(path).suffix.lower() in wanted] or present
    found = {part: [path for path in files if _part_of(path) == part] for part in Part}
    for part, paths in found.items():
        key = "data.source" if part == Part.TRAIN else f"data.{part.name.lower()}"
        if len(paths) > 1:
            raise UserError(
                f"{len(paths)} files for the {part.name.lower()} part: {', '.join(map(str, paths))}; "
                f"set data.format, or name one file as {key}"
            )
    result = {part: _files(paths[0], "data.source") for part, paths in found.items() if paths}
    if Part.TRAIN not in result:
        others = tuple(path for path in files if _part_of(path) is None)
        result[Part.TRAIN] = _training_part(folder, others, wanted, bool(result))
    return result


def _training_part(folder: Path, others: tuple[Path, ...], suffixes: tuple[str, ...], held_out: bool) -> _Found:
    """Return the training part of a folder without a train file: one other file, or part files."""
    if len(others) == 1:
        return others[0], others
    nested = () if others or held_out else _part_files(folder)
    if nested or (others and _are_part_files(others)):
        return folder, nested or others
    names = ", ".join(path.name for path in others)
    none = "it holds held-out parts alone" if held_out else "it holds no data file"
    pattern = f"{folder}/*{others[0].suffix}" if others else ""
    content = f"it holds {names}: name one as data.source, or several by a pattern such as {pattern!r}"
    expected = ", ".join(f"train{suffix}" for suffix in suffixes)
    raise UserError(f"{folder} has no training part ({expected}); {content if others else none}")


def _part_files(folder: Path) -> tuple[Path, ...]:
    """Return the data files of a folder in which a program wrote one table, those in folders `key=value` included."""
    files = [path for path in folder.iterdir() if _is_data(path)]
    for child in folder.iterdir():
        if child.is_dir() and "=" in child.name:
            files += _part_files(child)
    return tuple(sorted(files))


def _are_part_files(paths: tuple[Path, ...]) -> bool:
    """Return True for names that a program gave to the files of one table: `part-...`, or different in digits alone."""
    return all(_is_numbered(path) for path in paths) or len({re.sub(r"\d+", "0", path.name) for path in paths}) == 1


def _is_numbered(path: Path) -> bool:
    return re.match(r"part[-_.]", path.name) is not None


def _is_data(path: Path) -> bool:
    named = plain_name(path).suffix.lower() in SUFFIXES or _is_numbered(path)
    return named and path.is_file() and not _is_hidden(path)


def _is_hidden(path: Path) -> bool:
    return path.name.startswith((".", "_"))


def _part_of(path: Path) -> Part | None:
    """Return TRAIN for `train.txt`, `gowalla.train.inter` and `train.csv.gz`, None for `interactions.txt`."""
    stem = path.name if path.is_dir() and not path.suffix else plain_name(path).stem
    return (_ALIASES | dict(Part.__members__)).get(stem.rsplit(".", 1)[-1].upper())
