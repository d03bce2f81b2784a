"""The page of a search, finished or not: the best configuration and its test metrics, figures, all trials."""

import shlex
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from distrec.core.atomic_file import write_text
from distrec.core.section import expand_user
from distrec.tracking import environment
from distrec.tracking.result_table import Row
from distrec.tuning.config import SearchConfig
from distrec.tuning.drawing import svg
from distrec.tuning.folder import BEST_CONFIG, SearchFolder
from distrec.tuning.html_page import details, figure_html, html_page, html_table, paragraph, preformatted
from distrec.tuning.journal import Record, Records
from distrec.tuning.search import best_trial, refits
from distrec.tuning.search_figures import CAPTIONS, search_figures
from distrec.tuning.trial_table import short, trial_rows

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def write_search_page(folder: str | Path, out: Path, figures: "Mapping[str, Figure] | None" = None) -> Path:
    """Write the page of a search to a file, and return it. `figures`: those of `search_figures`, if they are drawn.

    Raises:
        UserError: this is not the folder of a search, or the file cannot be written.
    """
    found, out = SearchFolder(expand_user(folder)), expand_user(out)
    config, records = found.search_config(), Records(found.journal)
    facts = environment.facts("distrec", "python", "torch")
    fingerprint = str(found.facts().get("fingerprint", ""))
    facts |= {"data": f"fingerprint {fingerprint[:12]}", "search": f"{records.elapsed_s:.0f} s"}
    return write_text(out, html_page(found.path.absolute().name, [*_body(found, config, records, figures)], facts))


def _body(
    folder: SearchFolder, config: SearchConfig, records: Records, figures: "Mapping[str, Figure] | None"
) -> Iterator[str]:
    """Yield the parts of the page: what was found, figures, trials, the search file."""
    trials, metric = records.trials, config.metric
    ends = Counter(record.ended for record in trials)
    counts = ", ".join(f"{number} {end}" for end, number in ends.most_common())
    yield paragraph(f"{len(trials)} trials: {counts}.")
    best = best_trial(trials, metric)
    if best is not None and (point := best.best(metric)) is not None:
        yield paragraph(f"Best validation {metric}: {point[1]:.4f}, of trial {best.name} at epoch {point[0]}, with")
        yield preformatted("\n".join(f"{key}={short(value)}" for key, value in best.values.items()))
        if tests := _tests(config, records, best):
            yield paragraph("Test metrics of the refits, on training and validation part, for that number of epochs:")
            yield html_table(tests)
        yield paragraph(f"To train it again: {shlex.join(['distrec', 'train', str(folder.path / BEST_CONFIG)])}")
    drawn = search_figures(folder.path) if figures is None else figures
    yield from (figure_html(svg(figure), CAPTIONS[name]) for name, figure in drawn.items())
    if trials:
        yield html_table(trial_rows(trials, metric))
    text = yaml.safe_dump({"tune": config.model_dump(mode="json")["tune"], "space": config.space}, sort_keys=False)
    yield details("Search", preformatted(text))


def _tests(config: SearchConfig, records: Records, best: Record) -> list[Row]:
    """Return a row for each refit of the best trial that has ended."""
    ends = [(record, record.end) for name in refits(config, best) if (record := records.get(name))]
    return [{"seed": record.values["run.seed"], **end.get("metrics", {})} for record, end in ends if end]
