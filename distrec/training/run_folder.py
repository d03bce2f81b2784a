"""The run folder: which folder a run uses, its complete configuration, checkpoints and result."""

import contextlib
import json
import re
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Self

from pydantic import ValidationError

from distrec.core.atomic_file import atomic_file
from distrec.core.config import dump, flat, load
from distrec.core.errors import UserError, reason_of
from distrec.core.file_lock import FileLock
from distrec.core.section import Section
from distrec.sharding.checkpoint import is_complete
from distrec.training.config import Config
from distrec.training.ray_snapshot import restore_from

CHECKPOINTS, BEST, TEST_USERS = "checkpoints", "best", "test_users.parquet"
_CONFIG, _RESULT, _RUN, _LOCK = "config.yaml", "result.json", "run.json", "run.lock"
_FORMAT = 2  # of configuration and checkpoints; 1 had no key for it in run.json
FREE = (
    *("run.dir", "run.resume", "tracking.", "data.cache"),
    *("train.workers", "train.device", "train.threads", "train.look_ahead_mib", "train.stream", "train.wait_s"),
    *("train.capture", "train.deterministic"),
)
"""Prefixes of the keys that a resumed run may change: where it runs and how it is recorded, not what it computes."""
# It may also change how it is evaluated and when it ends, for which a finished run goes on.
_CONTINUED = ("eval.", "train.epochs", "train.patience", "train.watch", "train.checkpoint_every")


class Timing(Section):
    """Durations of a run, in seconds."""

    epoch_s: tuple[float, ...]
    """Training of each epoch, without evaluation and checkpoint."""
    train_s: float
    """Sum of `epoch_s`."""
    eval_s: float
    """Sum over all evaluations."""
    first_batch_s: float
    """From starting the stream to its first batch; not part of an epoch."""
    total_s: float
    """From preparing the data to the result; after a resume, of the last part of the run only."""


class Result(Section):
    """The result of a finished run, the content of `result.json`."""

    metrics: dict[str, float]
    """`test/recall@20` and so on, and `valid/...` of the same epoch if there is a validation part."""
    test_users: int
    """Users that the test metrics are means over."""
    left_out_users: int
    """Users without test items or without training items."""
    untrained_users: int = 0
    """Users without training interactions."""
    untrained_items: int = 0
    """Items without training interactions."""
    untrained_share: float = 0
    """Share of the test interactions, of the users evaluated, with such items."""
    workers: int
    epochs: int
    """Epochs trained."""
    tested_epoch: int | None = None
    """Epoch that the metrics are of: the best by `train.watch`, or the last. None: of an older version, the last."""
    interactions: int
    """Training interactions, each used once an epoch."""
    loss: tuple[float, ...]
    """Mean training loss of each epoch."""
    timing: Timing
    fingerprint: str
    """Fingerprint of the prepared data."""
    versions: dict[str, str]
    """Versions of the packages."""
    folder: Path
    """The run folder."""


class FolderInUse(UserError):
    """A run folder that another run uses."""


class RunFolder:
    """The folder of one run, which need not exist yet."""

    config_name: ClassVar[str] = _CONFIG
    """File whose existence says that a run has started."""
    config_kind: ClassVar[type[Config]] = Config
    continued: ClassVar[tuple[str, ...]] = _CONTINUED
    """Prefixes of the keys that a resumed run may change beside those of resources and tracking."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self.config_file = self.path / self.config_name
        self._lock = FileLock(self.path / _LOCK)
        self._is_new = False  # created by this object

    @classmethod
    def choose(cls, config: Config, name: str) -> Self:
        """Choose the folder of a new or resumed run by the rules of `run.dir` and `run.resume`, and lock it.

        The folder exists afterwards, and belongs to this run until `release`.

        Raises:
            FolderInUse: another run uses the folder.
            UserError: nothing to resume, a changed configuration, a new run in a folder that holds one already, a
                folder that cannot be written.
        """
        base = config.run.dir or Path("runs") / name
        if config.run.resume:
            folder = cls(base if config.run.dir else _latest_run(base, cls.config_name))
            if not folder.config_file.exists():
                raise UserError(f"run.resume: {folder.path} holds no run; check run.dir, or leave run.resume out")
            folder._check_same(config)
            folder._acquire()
        elif config.run.dir:
            folder = cls(base)
            folder._acquire()
            if folder.config_file.exists():
                folder.release()
                raise UserError(f"{base} holds a run already: go on with run.resume=true, or choose another run.dir")
        else:
            number = max(_numbered_folders(base), default=0) + 1
            while not (folder := cls(_numbered(base, number)))._create():
                number += 1
        return folder

    def _create(self) -> bool:
        """Create and lock the folder; return False if it exists."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.mkdir()
            self._is_new = True
            return self._lock.acquire()
        except FileExistsError:
            return False
        except OSError as error:
            raise self._unwritable(error) from None

    def _acquire(self) -> None:
        """Create the folder if it does not exist, and lock it. Raise FolderInUse if another run has it."""
        try:
            locked = self._create() or self._lock.acquire()
        except OSError as error:
            raise self._unwritable(error) from None
        if not locked:
            user = self._lock.holder()
            raise FolderInUse(
                f"{self.path} is used by another run, {user}: wait for its end, or choose another run.dir"
            )

    def release(self) -> None:
        """End the lock, and remove a folder in which no run has started."""
        self._lock.release()
        if self._is_new and not self.config_file.exists():
            with contextlib.suppress(OSError):
                self.path.rmdir()

    def _unwritable(self, error: OSError) -> UserError:
        return UserError(f"cannot write the run folder {self.path} (run.dir): {reason_of(error)}")

    def start(self, config: Config, facts: dict[str, Any]) -> None:
        """Write the complete configuration, and `facts` to a file of their own. Put an earlier result aside."""
        with contextlib.suppress(FileNotFoundError):
            (self.path / _RESULT).rename(self.path / f"before_{_RESULT}")
        self._write(_RUN, json.dumps({"format": _FORMAT} | facts, indent=2) + "\n")
        self._write(self.config_name, dump(config))  # last: a folder with it holds a run

    def _write(self, name: str, text: str) -> Path:
        """Write a file atomically, and return it."""
        try:
            with atomic_file(self.path / name) as partial:
                partial.write_text(text)
            return self.path / name
        except OSError as error:
            raise self._unwritable(error) from None

    def config(self) -> Config:
        """Return the configuration of the run. Raise UserError if this is no folder of a run of this format."""
        if not self.config_file.exists():
            raise UserError(f"{self.path} is not a run folder: it has no {self.config_name}")
        if (found := self.facts().get("format", 1)) != _FORMAT:
            version = f"{'an older' if found < _FORMAT else 'a newer'} version of distrec (run format {found})"
            raise UserError(f"{self.path} was written by {version}; this one reads format {_FORMAT}")
        return load(self.config_kind, self.config_file)

    def facts(self) -> dict[str, Any]:
        """Return the `facts` passed to `start` and the format of the folder, {} before it."""
        file = self.path / _RUN
        try:
            facts: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
            if not isinstance(facts, dict) or not isinstance(facts.get("format", 1), int):
                raise ValueError("it does not describe a run")
        except ValueError as error:
            raise UserError(f"{file} is damaged: {error}") from None
        return facts

    def check_fingerprint(self, fingerprint: str) -> None:
        """Raise UserError if the run was started on other data."""
        if self.facts().get("fingerprint", fingerprint) != fingerprint:
            raise UserError(
                f"{self.path}: the data have changed since this run was started: restore them, or train again"
            )

    def result(self) -> Result | None:
        """Return the result, or None if the run is not finished."""
        file = self.path / _RESULT
        try:
            return Result.model_validate_json(file.read_text()) if file.exists() else None
        except ValidationError as error:
            raise UserError(f"{file} is damaged; delete it to resume the run: {error.errors()[0]['msg']}") from None

    def finish(self, result: Result) -> Path:
        """Write the result. Return the file."""
        return self._write(_RESULT, result.model_dump_json(indent=2) + "\n")

    def last_checkpoint(self, note: Callable[[str], object] = warnings.warn) -> Path:
        """Return the newest complete checkpoint. `note` gets a line about newer ones that are damaged.

        Raises:
            UserError: there is none.
        """
        complete, damaged = self._checkpoints()
        if not complete:
            yet = f": {', '.join(path.name for path in damaged)} is damaged" if damaged else " yet"
            raise UserError(f"{self.path} has no checkpoint{yet}")
        if newer := [path.name for path in damaged if path.name > complete[-1].name]:
            note(f"{', '.join(newer)} is damaged; using {complete[-1].name}, the one before")
        return complete[-1]

    def best_checkpoint(self, note: Callable[[str], object] = warnings.warn) -> Path | None:
        """Return the checkpoint of the best epoch by `train.watch`, None if none is kept. `note` as above.

        In a finished run it is the epoch of the result: with another `watch` on resume, the kept one is not the best.
        """
        result, pattern = self.result(), "epoch_*"
        if result and result.tested_epoch:
            pattern = best_name(result.tested_epoch)
        found = sorted((self.path / BEST).glob(pattern), reverse=True)
        complete = next((path for path in found if is_complete(path)), None)
        if found and found[0] != complete:
            note(f"{found[0]}, the best epoch, is damaged; using {complete or 'the last checkpoint'}")
        return complete

    def _checkpoints(self) -> tuple[list[Path], list[Path]]:
        """Return the (complete, damaged) checkpoints, the oldest first."""
        found = sorted(path for path in (self.path / CHECKPOINTS).glob("checkpoint_*") if path.is_dir())
        state = {path: is_complete(path) for path in found}
        return [path for path in found if state[path]], [path for path in found if not state[path]]

    def prepare_resume(self, note: Callable[[str], object]) -> None:
        """Let Ray Train go on from the newest complete checkpoint: rename damaged ones, and correct its snapshot."""
        complete, damaged = self._checkpoints()
        where = f"goes on from {complete[-1].name}" if complete else "starts at its first epoch"
        try:
            for path in damaged:
                path.rename(path.with_name(f"damaged_{path.name}"))
                note(f"checkpoint {path} is damaged, and renamed to damaged_{path.name}; the run {where}")
            restore_from(self.path / CHECKPOINTS, [path.name for path in complete])
        except OSError as error:
            raise self._unwritable(error) from None

    def finished(self, config: Config) -> Result | None:
        """Return the result; None without one, or if `config` asks for more epochs or another evaluation."""
        return None if self._changes(config, FREE) else self.result()

    def _changes(self, config: Config, free: tuple[str, ...]) -> list[str]:
        """Return a text for each changed key. One that only one of the two uses depends on another that differs."""
        before, now = flat(self.config()), flat(config)
        changed = [k for k in now if k in before and before[k] != now[k] and not k.startswith(free)]
        return [f"{k} was {before[k]!r}, is {now[k]!r}" for k in changed]

    def _check_same(self, config: Config) -> None:
        if changes := self._changes(config, (*FREE, *self.continued)):
            raise UserError(f"cannot resume {self.path} with another configuration: {'; '.join(changes)}")
        before, now, schedule = self.config().train.epochs, config.train.epochs, config.optim.schedule.name
        if now < before:
            raise UserError(f"cannot resume {self.path} with train.epochs={now}: it was {before}, and can only grow")
        if now > before and "optim" not in config.unused() and schedule in ("linear", "cosine"):
            raise UserError(
                f"cannot extend {self.path} to train.epochs={now}: with schedule.name={schedule} its learning rate "
                f"has fallen to the end at epoch {before}; runs with schedule constant or step can be extended"
            )


def remove_checkpoints(folder: Path) -> None:
    """Delete the checkpoints of a run, that of its best epoch included."""
    for name in (CHECKPOINTS, BEST):
        shutil.rmtree(folder / name, ignore_errors=True)


def best_name(epoch: int) -> str:
    """Return the name of the checkpoint in the folder `BEST`."""
    return f"epoch_{epoch:06d}"


def _numbered(base: Path, number: int) -> Path:
    return base if number <= 1 else base.with_name(f"{base.name}-{number}")


def _numbered_folders(base: Path) -> list[int]:
    """Return the n of the existing folders base-n; base itself counts as 1."""
    found = [re.fullmatch(re.escape(base.name) + r"(?:-([1-9]\d*))?", path.name) for path in base.parent.glob("*")]
    return sorted(int(match[1] or 1) for match in found if match)


def _latest_run(base: Path, config_name: str) -> Path:
    """Return the last of the folders base-n in which a run has started, else base."""
    started = [n for n in _numbered_folders(base) if (_numbered(base, n) / config_name).exists()]
    return _numbered(base, started[-1] if started else 1)
