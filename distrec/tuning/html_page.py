"""Pages of searches and studies: one HTML file, light and dark, which needs no other file and no network."""

from collections.abc import Mapping, Sequence
from html import escape

from distrec.tracking.result_table import Row, columns

_TEMPLATE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; --paper: light-dark(#fff, #181818); --line: light-dark(#ddd, #444);
  --muted: light-dark(#666, #aaa); }}
body {{ background: var(--paper); font: 15px/1.5 system-ui, sans-serif; margin: 24px auto; max-width: 1100px;
  padding: 0 16px; }}
.scroll {{ overflow-x: auto; background: linear-gradient(90deg, var(--paper) 16px, transparent 32px),
  linear-gradient(270deg, var(--paper) 16px, transparent 32px), linear-gradient(90deg, var(--line), transparent 12px),
  linear-gradient(270deg, var(--line), transparent 12px); background-attachment: local, local, scroll, scroll; }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; margin: 12px 0; font-size: 14px; }}
th, td {{ border-bottom: 1px solid var(--line); padding: 4px 12px 4px 0; text-align: left; white-space: nowrap; }}
figure {{ background: #fff; border-radius: 6px; margin: 16px 0; padding: 8px; }}
figure svg {{ height: auto; max-width: 100%; }}
figcaption {{ color: #666; font-size: 13.5px; }}
@media (prefers-color-scheme: dark) {{ figure {{ filter: invert(0.9) hue-rotate(180deg); }} }}
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


def html_page(title: str, body: Sequence[str], facts: Mapping[str, str]) -> str:
    """Return a page: its title, parts in HTML, and in its footer what the figures depend on."""
    footer = "; ".join(f"{escape(key)} {escape(value)}" for key, value in facts.items())
    return _TEMPLATE.format(title=escape(title), body="\n".join(body), footer=footer)


def paragraph(text: str) -> str:
    return f"<p>{escape(text)}</p>"


def preformatted(text: str) -> str:
    return f"<pre>{escape(text)}</pre>"


def details(summary: str, content: str) -> str:
    """Return a part that a click opens."""
    return f"<details><summary>{escape(summary)}</summary>\n{content}\n</details>"


def figure_html(svg: str, caption: str = "") -> str:
    return f"<figure>{svg}{f'<figcaption>{escape(caption)}</figcaption>' if caption else ''}</figure>"


def html_table(rows: Sequence[Row]) -> str:
    """Return a table with a row for each, under the names of all their columns."""
    names = columns(rows)
    head = "".join(f"<th>{escape(name)}</th>" for name in names)
    lines = ("".join(f"<td>{escape(_text(row.get(name)))}</td>" for name in names) for row in rows)
    body = "\n".join(f"<tr>{line}</tr>" for line in lines)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table></div>'


def _text(value: object) -> str:
    return "" if value is None else f"{value:.4f}" if isinstance(value, float) else str(value)
