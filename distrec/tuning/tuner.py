"""Search for the best configuration of a run: the function behind `distrec tune`."""

import queue
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from distrec.core.config import load, parse, tree_with, with_values
from distrec.core.errors import UserError
from distrec.core.section import expand_user
from distrec.core.status import reporting, stage
from distrec.data.dataset import Dataset
from distrec.data.merge import refit_data
from distrec.data.prepare import prepare
from distrec.tracking.result_table import markdown_table
from distrec.training import connection
from distrec.training.checks import check_dataset, check_evaluation
from distrec.training.config import Config
from distrec.training.driver import stopped_by_sigterm
from distrec.tuning import ray_tune
from distrec.tuning.config import SearchConfig
from distrec.tuning.folder import BEST_CONFIG, PAGE, TABLE, SearchFolder
from distrec.tuning.journal import Journal, Record
from distrec.tuning.recorder import Recorder
from distrec.tuning.search import Search, refits
from distrec.tuning.search_figures import save_figures, search_figures
from distrec.tuning.search_page import write_search_page
from distrec.tuning.space import Space, make_space, read_search
from distrec.tuning.trial_table import trial_rows

Event = dict[str, Any]


@dataclass(frozen=True)
class SearchResult:
    """What a search has found.

    Attributes:
        folder: folder of the search.
        metric: the validation metric that was maximised, such as ndcg@20.
        values: the best values, by dotted key.
        value: validation metric of the best trial at its best epoch.
        epochs: that epoch, for which the refits were trained.
        metrics: of each refit, `test/recall@20` and so on.
        trials: all trials.
    """

    folder: Path
    metric: str
    values: Mapping[str, Any]
    value: float
    epochs: int
    metrics: Sequence[Mapping[str, float]]
    trials: Sequence[Record]


def load_search(
    path: Path | None, search: Path, overrides: Sequence[str] = (), note: Callable[[str], object] = lambda text: None
) -> SearchConfig:
    """Read a run file and a search file. Overrides win over both; that of a range makes it a fixed value."""
    fixed, ranges = read_search(expand_user(search))
    for key in [key for override in overrides if (key := override.partition("=")[0]) in ranges]:
        note(f"{key} is fixed by the command line, and not searched")
        del ranges[key]
    values = {**fixed, "space": ranges}
    return load(SearchConfig, None if path is None else expand_user(path), overrides, note, values)


def tune(
    config: Config,
    space: Mapping[str, Any] | str | Path,
    name: str = "search",
    on_event: Callable[[Event], object] | None = None,
    verbose: bool = False,
    **options: Any,
) -> SearchResult:
    """Search for the values of some keys that are best on the validation part; refit and test the best configuration.

    Args:
        config: configuration of the runs; `run.dir` and `run.resume` are those of the search.
        space: ranges by dotted key, `{"optim.lr": {"log_uniform": [1e-4, 0.1]}}`, or a search file.
        name: names the folder of the search, runs/NAME, unless `run.dir` is set.
        on_event: called with plain dicts: kinds `note`, `status`, `search`, `trial`, `report` and `end`.
        verbose: let Ray and the trials log to the terminal.
        options: keys `tune.*`: trials=20, sampler="tpe", ...; they win over those of a search file.

    Raises:
        UserError: a mistake in the configuration, the space or the data; no trial had a result.
        KeyboardInterrupt: stopped by Ctrl-C or SIGTERM. Its argument is the folder once the search can be resumed.
    """
    if isinstance(space, (str, Path)):
        fixed, ranges = read_search(expand_user(space))
    else:
        fixed, ranges = {}, dict(space)
    tree = tree_with(config, {key: value for key, value in fixed.items() if not key.startswith("tune.")})
    tuned = {key.removeprefix("tune."): value for key, value in fixed.items() if key.startswith("tune.")}
    base = parse(SearchConfig, {**tree, "space": ranges})
    values = {f"tune.{key}": value for key, value in {**tuned, **options}.items()}
    return run_search(with_values(base, values), name, on_event, verbose)


def run_search(
    config: SearchConfig, name: str, on_event: Callable[[Event], object] | None = None, verbose: bool = False
) -> SearchResult:
    """Run a search; arguments as of `tune`."""
    emit = on_event or (lambda event: None)

    def note(text: str) -> None:
        emit({"kind": "note", "text": text})

    space = make_space(config, config.space)
    folder = SearchFolder.choose(config, name)
    try:
        with reporting(emit):
            note(f"search folder: {folder.path}")
            dataset = _prepare(config, folder, note)
            fingerprint = dataset.manifest.fingerprint
            facts = {**folder.facts(), "fingerprint": fingerprint, "data": str(dataset.path.absolute())}
            recorder = Recorder(config, folder, facts, note)
            note(f"tracking: {recorder.parent.destination}")
            note(f"ray: {connection.describe_connection()}")
            stage("ray: starting")
            with ray_tune.ray_for_trials(config, verbose, note):
                resources = ray_tune.trial_resources(config)
                stage("tracking: opening the run")
                facts |= recorder.start(fingerprint)
                folder.start(config, facts)
                stage("")
                return _run(config, space, folder, resources, recorder, dataset, emit)
    finally:
        folder.release()


def _prepare(config: SearchConfig, folder: SearchFolder, note: Callable[[str], None]) -> Dataset:
    """Prepare the data that all trials use."""
    check_evaluation(config)
    stage("data: preparing")
    dataset = prepare(config.data, log=note)
    check_dataset(config, dataset)
    if not dataset.manifest.valid:
        raise UserError(
            "a search is judged on a validation part, and the data have none: set data.valid_fraction=0.1 or data.valid"
        )
    folder.check_fingerprint(dataset.manifest.fingerprint)
    return dataset


def _run(
    config: SearchConfig,
    space: Space,
    folder: SearchFolder,
    resources: dict[str, float],
    recorder: Recorder,
    dataset: Dataset,
    emit: Callable[[Event], object],
) -> SearchResult:
    """Run the trials and refits that the journal does not hold yet, record them, and write what was found."""
    journal, status = Journal(folder.journal), "FAILED"
    events: queue.SimpleQueue[Event] = queue.SimpleQueue()
    search = Search(
        config, space, folder, journal, events.put, lambda: refit_data(config.data, dataset), dataset.path.absolute()
    )
    search.slots, search.threads = ray_tune.trials_at_once(config, resources), max(1, int(resources["CPU"]))

    def update(record: Record) -> None:
        recorder.update(record, lambda: search.tree(record.name, record.values))

    def poll() -> None:
        while not events.empty():
            event = events.get()
            update(journal.records[event["trial"]])
            emit(event)

    def record_all() -> None:
        for record in list(journal.records.values()):
            update(record)

    try:
        emit({"kind": "search", "search": search})
        record_all()
        if not search.is_over:
            with stopped_by_sigterm():
                ray_tune.run_jobs(search, resources, poll)
        record_all()  # what failed at first
        result = _finish(search, recorder)
        status = "FINISHED"
        return result
    except KeyboardInterrupt:
        status = "KILLED"
        raise KeyboardInterrupt(str(folder.path)) from None
    finally:
        if status != "FINISHED":
            recorder.abandon(status)
        journal.close()


def _finish(search: Search, recorder: Recorder) -> SearchResult:
    """Write what was found. Raises UserError if no trial has a value."""
    config, trials, best, path = search.config, search.journal.records.trials, search.best(), search.folder.path
    point = None if best is None else best.best(config.metric)
    if best is None or point is None:
        texts = [r.end["text"] for r in trials if r.end and "text" in r.end]
        raise UserError(f"no trial has a value of {config.metric}" + (f"; the first said: {texts[0]}" if texts else ""))
    wanted = refits(config, best)
    metrics = [r.end["metrics"] for r in search.journal.records.refits if r.name in wanted and r.end]
    settings = next(iter(wanted.values()), best.values)
    tree = search.run_tree({**settings, "run.dir": None, "run.resume": False}, refit=bool(wanted))
    (path / BEST_CONFIG).write_text(yaml.safe_dump(tree, sort_keys=False))
    rows = trial_rows(trials, config.metric)
    (path / TABLE).write_text(markdown_table(rows))
    found = {f"valid/{config.metric}": point[1], "best/epoch": float(point[0]), "trials": float(len(trials))}
    found |= {key: statistics.fmean(m[key] for m in metrics) for key in (metrics[0] if metrics else ())}
    figures = search_figures(path)
    page = write_search_page(path, path / PAGE, figures)
    recorder.finish(found, rows, [path / BEST_CONFIG, page, *save_figures(figures, path)])
    return SearchResult(path, config.metric, best.values, point[1], point[0], metrics, trials)
