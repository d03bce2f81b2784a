"""The files of a study: its table as Markdown and Parquet, its figures, and a page that needs no network."""

from collections.abc import Mapping, Sequence
from datetime import date
from html import escape
from pathlib import Path

import yaml

from distrec.core.errors import UserError, reason_of
from distrec.tracking.environment import hardware, versions
from distrec.tracking.result_table import Row, columns, markdown_table
from distrec.tuning.study_figures import save_figures, study_figures, svg_figures
from distrec.tuning.study_rows import cell_rows, explanation, run_rows, text_rows, write_rows
from distrec.tuning.study_table import StudyTable

_PACKAGES = ("distrec", "python", "torch", "numpy", "numba")
_PATHS = ("data.source=", "data.test=", "data.valid=", "data.cache=", "tracking.")  # overrides that change no figure
_TEMPLATE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; --line: light-dark(#ddd, #444); --muted: light-dark(#666, #aaa); }}
body {{ font: 15px/1.5 system-ui, sans-serif; margin: 24px auto; max-width: 1100px; padding: 0 16px; }}
.scroll {{ overflow-x: auto; }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; margin: 12px 0; font-size: 14px; }}
th, td {{ border-bottom: 1px solid var(--line); padding: 4px 12px 4px 0; text-align: left; white-space: nowrap; }}
figure {{ background: #fff; border-radius: 6px; margin: 16px 0; padding: 8px; }}
figure svg {{ height: auto; max-width: 100%; }}
p, summary, footer {{ color: var(--muted); max-width: 80ch; }}
pre {{ overflow-x: auto; }}
</style>
</head>
<body>
<h1>{title}</h1>
{body}
<footer>{footer}</footer>
</body>
</html>
"""


def write_study(table: StudyTable, folder: Path, overrides: Sequence[str] = ()) -> list[Path]:
    """Write the table as Markdown, Parquet and HTML, and the figures, to a folder. Return the files."""
    facts = _facts(table, overrides)
    file = yaml.safe_dump(table.study.model_dump(mode="json", exclude_defaults=True), sort_keys=False)
    try:
        drawn = study_figures(table)
        figures = save_figures(drawn, folder)
        markdown, page = folder / "table.md", folder / "report.html"
        markdown.write_text(_markdown(table, facts, figures))
        page.write_text(_page(table, svg_figures(drawn), file, facts))
        parquet = [write_rows(cell_rows(table), folder / "cells.parquet")]
        parquet.append(write_rows(run_rows(table), folder / "runs.parquet"))
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {reason_of(error)}") from None
    return [markdown, page, *parquet, *figures]


def _facts(table: StudyTable, overrides: Sequence[str]) -> dict[str, str]:
    """Return what the figures depend on beside the study: versions, hardware, data, overrides."""
    results, installed = [result for found in table.cells for result in found.results.values()], versions()
    facts = {"date": date.today().isoformat(), "hardware": hardware()}
    facts |= {name: installed[name] for name in _PACKAGES if name in installed}
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
    body = [f"<figure>{svg}</figure>" for svg in drawn]
    body += [_html_table(text_rows(table))]
    body += [f"<p>{escape(line)}</p>" for line in explanation(table)]
    body += ["<details><summary>Runs</summary>", _html_table(run_rows(table)), "</details>"]
    body += ["<details><summary>Study</summary>", f"<pre>{escape(file)}</pre>", "</details>"]
    footer = "; ".join(f"{escape(key)} {escape(value)}" for key, value in facts.items())
    return _TEMPLATE.format(title=escape(table.study.name), body="\n".join(body), footer=footer)


def _html_table(rows: Sequence[Row]) -> str:
    names = columns(rows)
    head = "".join(f"<th>{escape(name)}</th>" for name in names)
    lines = ("".join(f"<td>{escape(_text(row.get(name)))}</td>" for name in names) for row in rows)
    body = "\n".join(f"<tr>{line}</tr>" for line in lines)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table></div>'


def _text(value: object) -> str:
    return "" if value is None else f"{value:.4f}" if isinstance(value, float) else str(value)
