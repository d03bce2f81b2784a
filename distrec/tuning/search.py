"""A search without its cluster: which trial is next, which is stopped, which is best. Its state is the journal."""

import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distrec.core.config import parse, tree_with
from distrec.core.errors import UserError
from distrec.data.config import DataConfig
from distrec.training.config import Config
from distrec.tuning.config import SearchConfig, absolute
from distrec.tuning.folder import SearchFolder
from distrec.tuning.journal import FAILED, FINISHED, REFIT, Event, Journal, Record
from distrec.tuning.sampler import Outcome, propose
from distrec.tuning.space import Space, Values
from distrec.tuning.stopping import asha_stops, median_stops

_HOPELESS = 3  # trials that fail before their first epoch, without any other, end the search
_MOST_INVALID = 50  # combinations in a row that the configuration rejects


@dataclass(frozen=True)
class Job:
    """A training to start: a trial or a refit, with its configuration as plain values."""

    name: str
    tree: dict[str, Any]
    data: Path | None
    """Folder of the prepared data; None for a refit, which has others."""


class Search:
    """Hands out jobs, and receives the reports of their epochs and ends. Called by one thread."""

    def __init__(
        self,
        config: SearchConfig,
        space: Space,
        folder: SearchFolder,
        journal: Journal,
        emit: Callable[[Event], object] = lambda event: None,
        refit_data: Callable[[], DataConfig] = DataConfig,
        data: Path | None = None,
    ) -> None:
        """
        Args:
            emit: called with events `trial`, `report` and `end`, each with the name of the trial.
            refit_data: prepares the data of the refits, and returns their configuration.
            data: folder of the prepared data of the trials.
        """
        self.config, self.space, self.folder, self.journal, self.emit = config, space, folder, journal, emit
        self.refit_data, self.data = functools.cache(refit_data), data
        self.slots, self.threads = 1, 0
        self.live: set[str] = set()
        self.closing = False
        self.error: UserError | None = None
        self._start_s = time.monotonic() - journal.records.elapsed_s
        combinations = len(space.combinations()) if config.tune.sampler == "grid" else None
        self.most_trials = config.tune.most_trials(combinations)

    @property
    def elapsed_s(self) -> float:
        """Seconds of the search, in all its parts."""
        return time.monotonic() - self._start_s

    # What is next.

    def next_job(self) -> Job | None:
        """Return a job to start now, None if there is none now; see `is_over`."""
        if self.closing or len(self.live) >= self.slots:
            return None
        try:
            name = self._next_unfinished() or self._next_trial() or self._next_refit()
            return None if name is None else self._job(name)
        except UserError as error:
            self.fail(error)
            return None

    @property
    def is_over(self) -> bool:
        """Return whether no further job will come."""
        if self.closing:
            return True
        open_trials = any(record.end is None for record in self.journal.records.values())
        return not (open_trials or self.live or self._may_propose() or self._wanted_refits())

    def _next_unfinished(self) -> str | None:
        """Return a trial that an earlier part of the search has left unfinished."""
        for record in self.journal.records.values():
            if record.end is not None or record.name in self.live:
                continue
            if not record.is_refit and (spent := self._spent()):
                self.end(record.name, {"reason": spent})
                continue
            return record.name
        return None

    def _next_trial(self) -> str | None:
        for _ in range(_MOST_INVALID):
            if not self._may_propose():
                return None
            trials = self.journal.records.trials
            tune, number = self.config.tune, len(trials)
            values = propose(self.space, tune.sampler, tune.seed, number, [self._outcome(r) for r in trials])
            name = f"{number:04d}"
            self.journal.start(name, values, self.elapsed_s)
            self.emit({"kind": "trial", "trial": name, "values": values})
            try:
                parse(Config, self.tree(name, values))
                return name
            except UserError as error:
                self.end(name, {"reason": "invalid", "text": str(error)})
                last = error
        raise UserError(f"no configuration of {_MOST_INVALID} in a row is valid; the last one: {last}")

    def _may_propose(self) -> bool:
        return not self._spent() and (self.most_trials is None or len(self.journal.records.trials) < self.most_trials)

    def _spent(self, new_epochs: int = 0) -> str:
        """Return which budget is used up, `minutes` or `epochs`, with epochs not recorded yet; "" for none."""
        tune = self.config.tune
        if tune.minutes is not None and self.elapsed_s >= 60 * tune.minutes:
            return "minutes"
        if tune.epochs is not None and new_epochs + self._epochs() >= tune.epochs:
            return "epochs"
        return ""

    def _epochs(self) -> int:
        return sum(record.epochs for record in self.journal.records.trials)

    def _outcome(self, record: Record) -> Outcome:
        state = "running" if not record.end else "finished" if record.reason == FINISHED else "stopped"
        curve = record.curve(self.config.metric)
        return Outcome(record.values, curve, "failed" if record.reason in FAILED else state)

    def _next_refit(self) -> str | None:
        if self.live or not (wanted := self._wanted_refits()):
            return None
        name, values = next(iter(wanted.items()))
        self.journal.start(name, values, self.elapsed_s)
        self.emit({"kind": "trial", "trial": name, "values": values})
        return name

    def _wanted_refits(self) -> dict[str, Values]:
        """Return the values of the refits of the best trial that have not started, by name."""
        best = self.best()
        wanted = {} if best is None else refits(self.config, best)
        return {name: values for name, values in wanted.items() if name not in self.journal.records}

    def best(self) -> Record | None:
        """Return the best trial, the first of several; None if none has a value."""
        return best_trial(self.journal.records.trials, self.config.metric)

    def _job(self, name: str) -> Job:
        self.live.add(name)
        record = self.journal.records[name]
        return Job(name, self.tree(name, record.values), None if record.is_refit else self.data)

    def tree(self, name: str, values: Values) -> dict[str, Any]:
        """Return the configuration of a trial as plain values. Raises UserError."""
        config = self.config
        cut_off = int(config.metric.partition("@")[2])
        settings = {
            **absolute(config),
            **values,
            "eval.k": list(dict.fromkeys([*config.eval.k, cut_off])),
            "eval.test": name.startswith(REFIT),
            "run.dir": str(self.folder.trial(name)),
            "run.resume": False,
            "tracking.enabled": False,
        }
        if not config.train.threads:
            settings["train.threads"] = self.threads
        return self.run_tree(settings, name.startswith(REFIT))

    def run_tree(self, settings: Values, refit: bool) -> dict[str, Any]:
        """Return the configuration of a run with other values of some keys, and of a refit with its data."""
        tree = tree_with(self.config, settings)
        if refit:
            tree["data"] = self.refit_data().model_dump(mode="json", exclude_unset=True)
        return {key: value for key, value in tree.items() if key not in ("tune", "space")}

    # What has happened.

    def report(self, name: str, report: Event) -> bool:
        """Record an epoch of a trial. Return whether to stop it."""
        record = self.journal.records[name]
        if self.closing or record.end is not None:
            return True
        if report["epoch"] <= record.epochs:  # of before a resume
            return False
        metric = self.config.metric
        if "metrics" in report and metric not in report["metrics"] and not record.is_refit:
            self.fail(UserError(f"tune.metric={metric} is not evaluated; known: {', '.join(report['metrics'])}"))
            return True
        kept = ("epoch", "loss", "seconds", "eval_s", "metrics")
        reason = "" if record.is_refit else self._reason_to_stop(record, report)
        end = {"reason": reason} if reason else None
        self.journal.report(name, {key: report[key] for key in kept if key in report}, self.elapsed_s, end)
        self.emit({"kind": "report", "trial": name, "epochs": report["epochs"]})
        if end:
            self._ended(name)
        return bool(end)

    def _reason_to_stop(self, record: Record, report: Event) -> str:
        if report["epoch"] >= report["epochs"]:
            return ""  # it ends by itself
        if spent := self._spent(new_epochs=1):
            return spent
        tune, metric = self.config.tune, self.config.metric
        if tune.stop == "none" or "metrics" not in report:
            return ""
        curve = [*record.curve(metric), (report["epoch"], report["metrics"][metric])]
        others = [other.curve(metric) for other in self.journal.records.trials if other is not record]
        if tune.stop == "asha":
            return "asha" if asha_stops(curve, others, tune.grace, tune.reduction) else ""
        return "median" if median_stops(curve, others, tune.grace) else ""

    def end(self, name: str, end: Event) -> None:
        """Record the end of a trial: its `reason`, and `text` or `metrics` if there are any."""
        if self.closing or self.journal.records[name].end is not None:
            return
        if name.startswith(REFIT) and end["reason"] != FINISHED:  # not recorded, so that a resume tries again
            self.fail(UserError(f"the refit failed: {end.get('text', end['reason'])}"))
            return
        self.journal.end(name, end, self.elapsed_s)
        self._ended(name)
        failed = [record for record in self.journal.records.trials if record.reason in FAILED and not record.reports]
        if len(failed) == len(self.journal.records.trials) == _HOPELESS and end["reason"] == "failed":
            self.fail(UserError(f"the first {_HOPELESS} trials failed: {end['text']}"))

    def _ended(self, name: str) -> None:
        self.live.discard(name)
        if not name.startswith(REFIT):
            self.folder.discard_checkpoints(name)
        self.emit({"kind": "end", "trial": name})

    def release(self, name: str) -> None:
        """Let a trial that has not ended be handed out again."""
        self.live.discard(name)

    def fail(self, error: UserError) -> None:
        """End the search with an error."""
        self.error, self.closing = error, True


def best_trial(trials: Sequence[Record], metric: str) -> Record | None:
    """Return the trial with the highest value, the first of several. A trial that diverged later counts."""
    valued = [(point[1], record) for record in trials if (point := record.best(metric)) is not None]
    return max(valued, key=lambda pair: pair[0])[1] if valued else None


def refit_values(best: Record, metric: str) -> Values:
    """Return the values of a refit of the best trial: its own, for its best number of epochs."""
    point = best.best(metric)
    assert point is not None
    return {**best.values, "train.epochs": point[0], "train.patience": 0, "train.watch": None}


def refits(config: SearchConfig, best: Record) -> dict[str, Values]:
    """Return the values of each refit of the best trial, by name."""
    values, first = refit_values(best, config.metric), config.run.seed
    return {
        f"{REFIT}{best.name}_{values['train.epochs']}_{seed}": {**values, "run.seed": seed}
        for seed in range(first, first + config.tune.refit_seeds)
    }
