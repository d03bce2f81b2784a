"""The run folder: which folder a run uses, its complete configuration, checkpoints and result."""

import json
import re
from pathlib import Path
from typing import Any

from distrec.core.config import Section, dump, flat
from distrec.core.errors import UserError
from distrec.training.config import Config, load_config

CHECKPOINTS = "checkpoints"
_CONFIG, _RESULT, _RUN = "config.yaml", "result.json", "run.json"
_FORMAT = 2  # of configuration and checkpoints; 1 had no key for it in run.json
# Prefixes of the keys that a resumed run may change: where it runs and how it is recorded, not what it computes.
_FREE = (
    *("run.dir", "run.resume", "tracking.", "data.cache"),
    *("train.workers", "train.device", "train.threads", "train.look_ahead_mib", "train.stream"),
)


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
    """`test/recall@20` and so on, and `valid/...` of the last epoch if there is a validation part."""
    test_users: int
    """Users that the test metrics are means over."""
    left_out_users: int
    """Users without test items or without training items."""
    workers: int
    epochs: int
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


class RunFolder:
    """The folder of one run, which need not exist yet."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self.config_file = self.path / _CONFIG

    @classmethod
    def choose(cls, config: Config, name: str) -> "RunFolder":
        """Return the folder of a new or resumed run, by the rules of `run.dir` and `run.resume`.

        Raises:
            UserError: nothing to resume, a changed configuration, or a new run in a folder that holds one already.
        """
        base = config.run.dir or Path("runs") / name
        if config.run.resume:
            folder = cls(base if config.run.dir else _numbered(base, _last_number(base)))
            if not folder.config_file.exists():
                raise UserError(f"run.resume: {folder.path} holds no run; check run.dir, or leave run.resume out")
            folder._check_same(config)
            return folder
        if not config.run.dir:
            return cls(_numbered(base, _last_number(base) + 1))
        if (base / _CONFIG).exists():
            raise UserError(f"{base} holds a run already: go on with run.resume=true, or choose another run.dir")
        return cls(base)

    def start(self, config: Config, facts: dict[str, Any]) -> None:
        """Create the folder and write the complete configuration, and `facts` to a file of their own."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self.config_file.write_text(dump(config))
            (self.path / _RUN).write_text(json.dumps({"format": _FORMAT} | facts, indent=2) + "\n")
        except OSError as error:
            raise UserError(f"cannot write the run folder {self.path}: {error}") from None

    def config(self) -> Config:
        """Return the configuration of the run. Raise UserError if this is no run folder, or one of another format."""
        if not self.config_file.exists():
            raise UserError(f"{self.path} is no run folder: it has no {_CONFIG}")
        if (found := self.facts().get("format", 1)) != _FORMAT:
            version = f"{'an older' if found < _FORMAT else 'a newer'} version of distrec (run format {found})"
            raise UserError(f"{self.path} was written by {version}; this one reads format {_FORMAT}")
        return load_config(self.config_file)

    def facts(self) -> dict[str, Any]:
        """Return the `facts` passed to `start` and the format of the folder, {} before it."""
        file = self.path / _RUN
        facts: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
        return facts

    def check_fingerprint(self, fingerprint: str) -> None:
        """Raise UserError if the run was started on other data."""
        if self.facts().get("fingerprint", fingerprint) != fingerprint:
            raise UserError(f"{self.path}: the data have changed since this run was started")

    def result(self) -> Result | None:
        """Return the result, or None if the run is not finished."""
        file = self.path / _RESULT
        return Result.model_validate_json(file.read_text()) if file.exists() else None

    def finish(self, result: Result) -> Path:
        """Write the result atomically. Return the file."""
        partial = self.path / (_RESULT + ".partial")
        partial.write_text(result.model_dump_json(indent=2) + "\n")
        return partial.rename(self.path / _RESULT)

    def last_checkpoint(self) -> Path:
        """Return the newest checkpoint. Raise UserError if there is none."""
        found = sorted(path for path in (self.path / CHECKPOINTS).glob("checkpoint_*") if path.is_dir())
        if not found:
            raise UserError(f"{self.path} has no checkpoint yet")
        return found[-1]

    def _check_same(self, config: Config) -> None:
        before, now = flat(self.config()), flat(config)
        # A key that only one of them uses depends on another that differs.
        changed = [k for k in now if k in before and before[k] != now[k] and not k.startswith(_FREE)]
        if changed:
            shown = "; ".join(f"{k} was {before.get(k)!r}, is {now[k]!r}" for k in changed)
            raise UserError(f"cannot resume {self.path} with another configuration: {shown}")


def _numbered(base: Path, number: int) -> Path:
    return base if number <= 1 else base.with_name(f"{base.name}-{number}")


def _last_number(base: Path) -> int:
    """Return the largest n of the existing folders base-n; base itself counts as 1. 0 if there is none."""
    found = [re.fullmatch(re.escape(base.name) + r"(?:-([1-9]\d*))?", path.name) for path in base.parent.glob("*")]
    return max((int(match[1] or 1) for match in found if match), default=0)
