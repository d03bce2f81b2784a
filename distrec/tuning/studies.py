"""Studies: the runs of all cells and seeds, trained once each, and their comparison."""

import contextlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distrec.core.config import dump, parse
from distrec.core.errors import UserError, reason_of
from distrec.core.file_lock import FileLock
from distrec.core.section import expand_user
from distrec.core.status import reporting, stage
from distrec.data.config import DataConfig
from distrec.data.dataset import Dataset
from distrec.data.merge import refit_data
from distrec.data.prepare import prepare
from distrec.tracking.result_table import Row
from distrec.training.checks import check_dataset, check_evaluation
from distrec.training.config import Config
from distrec.training.run_folder import Result
from distrec.tuning.study_cells import Cell, check_metrics, make_cells, run_key
from distrec.tuning.study_config import Size, StudyConfig, load_study
from distrec.tuning.study_page import write_study
from distrec.tuning.study_recorder import StudyRecorder
from distrec.tuning.study_rows import cell_rows, text_rows
from distrec.tuning.study_run import Job, StudyRun, figures_of, threads_of, train_run
from distrec.tuning.study_search import cell_search, search_cell
from distrec.tuning.study_table import CellResult, StudyTable, make_table
from distrec.tuning.worker_pool import run_jobs

Event = dict[str, Any]
_FILE = "study.yaml"
_STOPPING = ("train.patience", "train.watch")  # without effect in a refit


@dataclass(frozen=True)
class StudyResult:
    """What a study has found.

    Attributes:
        folder: folder of the study: table.md, report.html, cells.parquet, runs.parquet, figures, and the runs.
        table: the cells with their results and comparisons.
        failed: errors of the runs that failed, by cell and seed.
    """

    folder: Path
    table: StudyTable
    failed: Mapping[str, str]

    @property
    def rows(self) -> list[Row]:
        """A row for each cell, with numbers."""
        return cell_rows(self.table)


def study(
    study: str | Path | Mapping[str, Any],
    overrides: Sequence[str] = (),
    size: Size = "full",
    folder: str | Path | None = None,
    parallel: int = 1,
    on_event: Callable[[Event], object] | None = None,
) -> StudyResult:
    """Run the cells of a study with each seed, and compare them. Runs that are finished are not repeated.

    Args:
        study: a study file, or what one holds.
        overrides: `key=value` strings for all runs, such as data.source=path/to/gowalla.
        size: `full` or `small`.
        folder: folder of the study. Default: runs/NAME. Another call with it goes on where this one was stopped.
        parallel: runs side by side, each in a process of its own. With more than one, a script needs
            `if __name__ == "__main__":` around the call.
        on_event: called with plain dicts: kinds `note`, `status`, `run`, and the events of searches.

    Raises:
        UserError: a mistake in the study, a configuration or the data; cells of different data; no run has a result.
    """
    config, emit = load_study(study, size), on_event or (lambda event: None)
    if parallel < 1:
        raise UserError(f"a study runs at least one training at a time, not {parallel}")
    cells = make_cells(config, overrides)
    check_metrics(config, cells)
    path = (Path("runs") / config.name if folder is None else expand_user(folder)).absolute()
    with _locked(path), reporting(emit):
        return _Study(config, cells, overrides, path, parallel, emit).run()


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Create and lock the folder of a study. Raises UserError."""
    lock = FileLock(path / "study.lock")
    try:
        others = [file for file in path.iterdir() if file != lock.path] if path.exists() else []
        if others and not (path / _FILE).exists():
            raise UserError(f"{path} holds something else than a study: choose another folder")
        path.mkdir(parents=True, exist_ok=True)
        locked = lock.acquire()
    except OSError as error:
        raise UserError(f"cannot write the folder of the study, {path}: {reason_of(error)}") from None
    if not locked:
        raise UserError(f"{path} is used by another study, {lock.holder()}: wait for its end, or choose another folder")
    try:
        yield
    finally:
        lock.release()


class _Study:
    """One call of `study`."""

    def __init__(
        self,
        config: StudyConfig,
        cells: Sequence[Cell],
        overrides: Sequence[str],
        path: Path,
        parallel: int,
        emit: Callable[[Event], object],
    ) -> None:
        self.config, self.cells, self.overrides, self.path = config, cells, overrides, path
        self.parallel, self.emit = parallel, emit
        self._datasets: dict[str, Dataset] = {}
        self._refit_data: dict[str, DataConfig] = {}
        self._results: dict[str, Result] = {}

    def note(self, text: str) -> None:
        self.emit({"kind": "note", "text": text})

    def run(self) -> StudyResult:
        self.note(f"study folder: {self.path}")
        fingerprint = self._check_data()
        recorder = StudyRecorder(self.cells[0].config.tracking, self.path, self.note)
        self.note(f"tracking: {recorder.parent.destination}")
        (self.path / _FILE).write_text(dump(self.config))  # first: without it the folder is that of no study
        recorder.start(self.config, fingerprint, self.path)
        try:
            found, errors = self._search(recorder)
            runs = self._plan(found, errors)
            errors |= self._train(runs, recorder)
            result = self._finish(runs, found, errors, recorder)
        except BaseException as error:
            recorder.parent.finish("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
            raise
        return result

    def _dataset(self, config: Config) -> Dataset:
        """Return the prepared data of a configuration."""
        key = _data_key(config)
        if key not in self._datasets:
            stage("data: preparing")
            dataset = prepare(config.data, log=self.note)
            check_dataset(config, dataset)
            self._datasets[key] = dataset
            stage("")
        return self._datasets[key]

    def _data_of_refits(self, config: Config) -> DataConfig:
        """Return the configuration of the data on which the best configuration of a search is trained."""
        key = _data_key(config)
        if key not in self._refit_data:
            self._refit_data[key] = refit_data(config.data, self._dataset(config), self.note)
        return self._refit_data[key]

    def _check_data(self) -> str:
        """Return the fingerprint of the data. Raise UserError if that of two cells differs."""
        for cell in self.cells:
            check_evaluation(cell.config)
        first, *others = self.cells
        fingerprint = self._dataset(first.config).manifest.fingerprint
        for cell in others:
            if self._dataset(cell.config).manifest.fingerprint != fingerprint:
                raise UserError(
                    f"cells {first.label} and {cell.label} have different data or splits, so their figures cannot be "
                    "compared: leave data.* keys out of cells, and give each data set and split a study of its own"
                )
        return fingerprint

    def _search(self, recorder: StudyRecorder) -> tuple[dict[str, dict[str, Any]], dict[tuple[str, int], str]]:
        """Run the search of each cell. Return what each gives its runs, and errors by (label, seed)."""
        found: dict[str, dict[str, Any]] = {}
        errors: dict[tuple[str, int], str] = {}
        if self.config.search is None:
            return found, errors
        uri, search = recorder.parent.uri, self.config.search
        searches = [
            cell_search(search, c, self.path / "searches", self._dataset(c.config).manifest.fingerprint, uri)
            for c in self.cells
        ]
        for cell, config in zip(self.cells, searches, strict=True):
            self.note(f"search of {cell.label}")
            try:
                found[cell.label] = search_cell(config, self.emit)
            except UserError as error:
                errors |= {(cell.label, seed): str(error) for seed in self.config.seeds}
        return found, errors

    def _plan(self, found: Mapping[str, Mapping[str, Any]], errors: Mapping[tuple[str, int], str]) -> list[StudyRun]:
        """Return the runs of all cells and seeds, without those whose search failed."""
        runs = []
        for seed in self.config.seeds:  # a study that is stopped has whole columns of its table
            for cell in self.cells:
                if (cell.label, seed) in errors:
                    continue
                tree = self._tree(cell, seed, found.get(cell.label))
                config = parse(Config, tree)
                dataset = self._dataset(config)
                key = run_key(config, cell.values, dataset.manifest.fingerprint)
                folder = self.path / "runs" / key
                tree["run"]["dir"] = str(folder)
                runs.append(StudyRun(cell, seed, key, folder, dataset.path.absolute(), tree))
        return runs

    def _tree(self, cell: Cell, seed: int, found: Mapping[str, Any] | None) -> dict[str, Any]:
        """Return the configuration of a run as plain values: of its cell, or of the refit that its search has found."""
        fixed = {"run.seed": seed, "run.resume": False, "tracking.enabled": False}
        tree = cell.with_values({**(found or {}), **fixed})
        if found is not None:
            tree["data"] = self._data_of_refits(cell.config).model_dump(mode="json", exclude_unset=True)
        return tree

    def _train(self, runs: Sequence[StudyRun], recorder: StudyRecorder) -> dict[tuple[str, int], str]:
        """Train the runs that are not finished. Return errors by (label, seed)."""
        waiting = {run.key: run for run in runs if self._result(run) is None}
        finished = {run.key: run for run in runs if run.key not in waiting}
        total = len(waiting) + len(finished)
        self.note(
            f"{len(self.cells)} cells, {len(self.config.seeds)} seeds: {total} runs, {len(finished)} finished before"
        )
        for run in finished.values():
            self._record(run, recorder)
        jobs = [Job(run.tree, run.data, threads_of(self.parallel)) for run in waiting.values()]
        failed: dict[str, str] = {}
        start = time.monotonic()
        with contextlib.closing(run_jobs(train_run, jobs, self.parallel)) as ended:  # else processes outlive an error
            for done, (k, error) in enumerate(ended, 1):
                run = list(waiting.values())[k]
                if error is not None:
                    failed[run.key] = error
                else:
                    self._record(run, recorder)
                left_s = (time.monotonic() - start) / done * (len(jobs) - done)
                counts = {"done": len(finished) + done, "runs": total, "left_s": left_s}
                self.emit({"kind": "run", **counts, **self._event(run, error)})
        return {(run.cell.label, run.seed): failed[run.key] for run in runs if run.key in failed}

    def _event(self, run: StudyRun, error: str | None) -> Event:
        """Return the details of the `run` event of a run that has ended."""
        event: Event = {"cell": run.cell.label, "seed": run.seed, "error": error}
        if error is not None:
            return event
        result = self._result(run)
        assert result is not None, run.folder
        figures = figures_of(result, self.config.ratios)
        shown = {name: figures[name] for name in self.config.metrics if name in figures}
        return {**event, "figures": shown, "seconds": result.timing.total_s, "epochs": result.epochs}

    def _result(self, run: StudyRun) -> Result | None:
        """Return the result of a run, read once; None if it is not finished."""
        if run.key not in self._results and (result := run.result()) is not None:
            self._results[run.key] = result
        return self._results.get(run.key)

    def _record(self, run: StudyRun, recorder: StudyRecorder) -> None:
        """Record a run if it is finished and has not been recorded."""
        if (result := self._result(run)) is not None:
            recorder.record(run, result)

    def _finish(
        self,
        runs: Sequence[StudyRun],
        found: Mapping[str, Mapping[str, Any]],
        errors: Mapping[tuple[str, int], str],
        recorder: StudyRecorder,
    ) -> StudyResult:
        """Write what was found. Raises UserError if no run has a result."""
        results: list[CellResult] = []
        for run in runs:
            self._record(run, recorder)  # what could not be recorded before
        for cell in self.cells:
            own = {r.seed: result for r in runs if r.cell is cell and (result := self._result(r)) is not None}
            own_errors = {seed: text for (label, seed), text in errors.items() if label == cell.label}
            best = {k: v for k, v in found.get(cell.label, {}).items() if k not in _STOPPING}
            results.append(CellResult(cell, own, own_errors, best))
        if not any(cell.results for cell in results):
            raise UserError(f"no run has a result; the first said: {next(iter(errors.values()))}")
        stage("writing the table and figures")
        table = make_table(self.config, results)
        files = write_study(table, self.path, self.overrides)
        recorder.finish({f"best/{name}": value for name, value in table.best().items()}, text_rows(table), files)
        failed = {f"{label}, seed {seed}": text for (label, seed), text in errors.items()}
        return StudyResult(self.path, table, failed)


def _data_key(config: Config) -> str:
    return json.dumps(config.data.model_dump(mode="json"), sort_keys=True)
