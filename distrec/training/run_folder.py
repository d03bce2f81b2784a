"""The run folder: the complete configuration, the checkpoints, and at the end the result."""

import json
import re
from pathlib import Path
from typing import Any

from distrec.core.config import Section, dump, flat, load
from distrec.core.errors import UserError
from distrec.training.config import Config

CHECKPOINTS = "checkpoints"
_CONFIG, _RESULT, _RUN = "config.yaml", "result.json", "run.json"
# What a resumed run may change: where it runs and how it is watched, not what it computes.
_FREE = (
    "run.dir",
    "run.resume",
    "train.workers",
    "train.device",
    "train.threads",
    "train.look_ahead_mib",
    "train.stream",
)
_FREE += ("tracking.", "data.cache")


class Timing(Section):
    """Seconds."""

    epoch_s: tuple[float, ...]
    """Training of each epoch, without evaluation and checkpoint."""
    train_s: float
    """All epochs together."""
    eval_s: float
    """All evaluations together."""
    first_batch_s: float
    """From starting the stream to its first batch; not part of an epoch."""
    total_s: float
    """From preparing the data to the result; of a resumed run, its last part."""


class Result(Section):
    """What a run came to; `result.json`."""

    metrics: dict[str, float]
    """`test/recall@20` and so on; `valid/...` of the last epoch if there is a validation part."""
    test_users: int
    """Users that the test metrics are means over."""
    left_out_users: int
    """Users that were not: without test items there is nothing to find, without training items no trained row."""
    workers: int
    epochs: int
    interactions: int
    """Training interactions, each seen once an epoch."""
    loss: tuple[float, ...]
    """Mean training loss of each epoch."""
    timing: Timing
    fingerprint: str
    """Of the prepared data."""
    versions: dict[str, str]
    folder: Path
    """The run folder."""


class RunFolder:
    """One run's folder, made or found."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self.config_file = self.path / _CONFIG

    @classmethod
    def choose(cls, config: Config, name: str) -> "RunFolder":
        """The folder that a run uses, by the rules of `run.dir` and `run.resume`.

        Raises:
            UserError: nothing to resume, another configuration to resume, or a folder that holds a run already.
        """
        base = config.run.dir or Path("runs") / name
        if config.run.resume:
            folder = cls(base) if config.run.dir else cls(_latest(base))
            if not folder.config_file.exists():
                raise UserError(f"run.resume: {folder.path} holds no run; check run.dir, or leave run.resume out")
            folder._check_same(config)
            return folder
        if not config.run.dir:
            return cls(_next_free(base))
        if (base / _CONFIG).exists():
            raise UserError(f"{base} holds a run already: go on with run.resume=true, or choose another run.dir")
        return cls(base)

    def start(self, config: Config, facts: dict[str, Any]) -> None:
        """Makes the folder and writes the complete configuration. `facts` are kept beside it, see `facts`."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self.config_file.write_text(dump(config))
            (self.path / _RUN).write_text(json.dumps(facts, indent=2) + "\n")
        except OSError as error:
            raise UserError(f"cannot write the run folder {self.path}: {error}") from None

    def config(self) -> Config:
        """The configuration that the run was started with."""
        if not self.config_file.exists():
            raise UserError(f"{self.path} is no run folder: it has no {_CONFIG}")
        return load(Config, self.config_file)

    def facts(self) -> dict[str, Any]:
        """What `start` was given."""
        file = self.path / _RUN
        return json.loads(file.read_text()) if file.exists() else {}

    def check_fingerprint(self, fingerprint: str) -> None:
        """Raises UserError if the run was started on other data."""
        if self.facts().get("fingerprint", fingerprint) != fingerprint:
            raise UserError(f"{self.path}: the data have changed since this run was started")

    def result(self) -> Result | None:
        """The result, or None while the run has not ended."""
        file = self.path / _RESULT
        return Result.model_validate_json(file.read_text()) if file.exists() else None

    def finish(self, result: Result) -> Path:
        """Writes the result; it is there in full or not at all. Returns the file."""
        partial = self.path / (_RESULT + ".partial")
        partial.write_text(result.model_dump_json(indent=2) + "\n")
        return partial.rename(self.path / _RESULT)

    def last_checkpoint(self) -> Path:
        """The newest checkpoint. Raises UserError if there is none."""
        found = sorted(path for path in (self.path / CHECKPOINTS).glob("checkpoint_*") if path.is_dir())
        if not found:
            raise UserError(f"{self.path} has no checkpoint yet")
        return found[-1]

    def _check_same(self, config: Config) -> None:
        before, now = flat(self.config()), flat(config)
        changed = [k for k in now if before.get(k) != now[k] and not k.startswith(_FREE)]
        if changed:
            shown = "; ".join(f"{k} was {before.get(k)!r}, is {now[k]!r}" for k in changed)
            raise UserError(f"cannot resume {self.path} with another configuration: {shown}")


def _numbered(base: Path, number: int) -> Path:
    return base if number == 1 else base.with_name(f"{base.name}-{number}")


def _next_free(base: Path) -> Path:
    return _numbered(base, max(_taken(base), default=0) + 1)


def _latest(base: Path) -> Path:
    return _numbered(base, max(_taken(base), default=1))


def _taken(base: Path) -> list[int]:
    """The numbers n of the folders base-n that exist; base itself is number 1."""
    found = [re.fullmatch(re.escape(base.name) + r"(?:-([1-9]\d*))?", path.name) for path in base.parent.glob("*")]
    return [int(match[1] or 1) for match in found if match]
