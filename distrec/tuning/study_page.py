"""The files of a study: its table as Markdown and Parquet, its figures, and a page that needs no network."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml

from distrec.core.errors import UserError, reason_of
from distrec.tracking import environment
from distrec.tracking.result_table import markdown_table
from distrec.tuning.drawing import svg
from distrec.tuning.html_page import details, figure_html, html_page, html_table, paragraph, preformatted
from distrec.tuning.study_figures import save_figures, study_figures
from distrec.tuning.study_rows import cell_rows, explanation, run_rows, text_rows, write_rows
from distrec.tuning.study_table import StudyTable

_PACKAGES = ("distrec", "python", "torch", "numpy", "numba")
_PATHS = ("data.source=", "data.test=", "data.valid=", "data.cache=", "tracking.")  # overrides that change no figure


def write_study(table: StudyTable, folder: Path, overrides: Sequence[str] = ()) -> list[Path]:
    """Write the table as Markdown, Parquet and HTML, and the figures, to a folder. Return the files."""
    facts = _facts(table, overrides)
    file = yaml.safe_dump(table.study.model_dump(mode="json", exclude_defaults=True), sort_keys=False)
    try:
        drawn = study_figures(table)
        figures = save_figures(drawn, folder)
        markdown, page = folder / "table.md", folder / "report.html"
        markdown.write_text(_markdown(table, facts, figures))
        page.write_text(_page(table, [svg(figure) for figure in drawn], file, facts))
        parquet = [write_rows(cell_rows(table), folder / "cells.parquet")]
        parquet.append(write_rows(run_rows(table), folder / "runs.parquet"))
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {reason_of(error)}") from None
    return [markdown, page, *parquet, *figures]


def _facts(table: StudyTable, overrides: Sequence[str]) -> dict[str, str]:
    """Return what the figures depend on beside the study: versions, hardware, data, overrides."""
    results = [result for found in table.cells for result in found.results.values()]
    facts = environment.facts(*_PACKAGES)
    facts["data"] = f"fingerprint {results[0].fingerprint[:12]}"
    if chosen := [text for text in overrides if not text.startswith(_PATHS)]:
        facts["overrides"] = " ".join(chosen)
    facts["runs"] = f"{len(results)}, of {sum(result.timing.total_s for result in results):.0f} s in all"
    return facts


def _markdown(table: StudyTable, facts: Mapping[str, str], figures: Sequence[Path]) -> str:
    parts = [f"# {table.study.name}\n", markdown_table(text_rows(table)), "\n".join(explanation(table)) + "\n"]
    parts += [f"![figure]({figure.name})\n" for figure in figures]
    parts.append("; ".join(f"{key} {value}" for key, value in facts.items()) + "\n")
    return "\n".join(parts)


def _page(table: StudyTable, drawn: Sequence[str], file: str, facts: Mapping[str, str]) -> str:
    """Return the page: figures, table, how to read it, runs, the study file, and facts such as the hardware."""
    body = list(map(figure_html, drawn))
    body += [html_table(text_rows(table)), *map(paragraph, explanation(table))]
    body += [details("Runs", html_table(run_rows(table))), details("Study", preformatted(file))]
    return html_page(table.study.name, body, facts)
