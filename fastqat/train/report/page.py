"""The HTML of a report: one file with everything inside it, readable on a screen and on paper."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

CSS = """
:root { --ink: #1f2933; --soft: #52606d; --line: #e4e7eb; --tint: #f5f7fa; --accent: #0072b2; }
* { box-sizing: border-box; }
body { margin: 0; color: var(--ink); background: #fff; }
body { font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 1020px; margin: 0 auto; padding: 40px 28px 64px; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 6px; overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; margin: 48px 0 10px; padding-top: 14px; border-top: 1px solid var(--line); }
p.lead { font-size: 1.08rem; color: var(--soft); margin: 0 0 22px; max-width: 48em; }
p.note { background: #fff8e6; border-left: 4px solid #e69f00; padding: 8px 14px; margin: 10px 0; }
nav { margin: 0 0 4px; font-size: .92rem; }
nav a { color: var(--accent); text-decoration: none; margin-right: 18px; white-space: nowrap; }
nav a:hover { text-decoration: underline; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(250px, 1fr)); gap: 12px; margin: 20px 0 8px; }
.card { background: var(--tint); border: 1px solid var(--line); border-radius: 8px; padding: 12px 16px 13px; break-inside: avoid; }
.card .label { color: var(--soft); font-size: .86rem; }
.card .value { font-size: 1.65rem; font-weight: 650; line-height: 1.3; font-variant-numeric: tabular-nums; }
.card .hint { color: var(--soft); font-size: .86rem; line-height: 1.35; }
.card.main { border-color: var(--accent); background: #eef6fb; }
figure { margin: 12px 0 0; break-inside: avoid; }
figure img { width: 100%; height: auto; display: block; }
figcaption, p.about { color: var(--soft); font-size: .93rem; max-width: 60em; margin: 6px 0 0; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; width: 100%; }
th, td { padding: 5px 12px 5px 0; text-align: left; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { color: var(--soft); font-weight: 600; vertical-align: bottom; }
td.number, th.number { text-align: right; }
tr.best td { background: #eef6fb; }
pre { background: var(--tint); border: 1px solid var(--line); border-radius: 8px; padding: 12px 16px; overflow-x: auto; }
pre { font-size: .86rem; line-height: 1.5; }
pre.columns { columns: 2 20em; }
details summary { cursor: pointer; color: var(--accent); margin: 10px 0; }
footer { margin-top: 56px; color: var(--soft); font-size: .85rem; }
@media print {
  body { font-size: 10.5pt; }
  main { max-width: none; padding: 0; }
  .cards { grid-template-columns: repeat(3, 1fr); gap: 8px; }
  nav, details:not([open]) { display: none; }
  h2 { break-after: avoid; margin-top: 22px; }
  pre { white-space: pre-wrap; }
}
"""


@dataclass(frozen=True)
class Card:
    """One headline number with what it is and how to read it."""

    label: str
    value: str
    hint: str = ""
    main: bool = False


@dataclass(frozen=True)
class Section:
    """A heading and the HTML under it; `anchor` is its address inside the page."""

    anchor: str
    title: str
    body: str


def cards(items: Iterable[Card]) -> str:
    """The headline numbers as a grid of boxes."""
    boxes = (
        f'<div class="card{" main" if item.main else ""}"><div class="label">{escape(item.label)}</div>'
        f'<div class="value">{escape(item.value)}</div><div class="hint">{escape(item.hint)}</div></div>'
        for item in items
    )
    return f'<div class="cards">{"".join(boxes)}</div>'


def figure(data_uri: str, title: str, caption: str) -> str:
    """A picture with its caption; `data_uri` holds the picture itself."""
    return f'<figure><img src="{data_uri}" alt="{escape(title, quote=True)}"><figcaption>{escape(caption)}</figcaption></figure>'


def table(header: Sequence[str], rows: Iterable[Sequence[str]], *, best: int | None = None) -> str:
    """A table; columns whose cells are all numbers are set to the right, row `best` is marked."""
    body = [list(row) for row in rows]
    number = [all(_is_number(row[i]) for row in body) for i in range(len(header))]
    head = "".join(_cell("th", text, right) for text, right in zip(header, number, strict=True))
    lines = (
        ('<tr class="best">' if i == best else "<tr>")
        + "".join(_cell("td", text, right) for text, right in zip(row, number, strict=True))
        + "</tr>"
        for i, row in enumerate(body)
    )
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'


def _cell(tag: str, text: str, right: bool) -> str:
    return f"<{tag}{' class=number' if right else ''}>{escape(text)}</{tag}>"


def _is_number(text: str) -> bool:
    return not text or text == "–" or text[0].isdigit() or (text[0] in "+-−" and text[1:2].isdigit())


def paragraph(text: str, kind: str = "about") -> str:
    """A paragraph: ``"about"`` plain, ``"note"`` a warning, ``"lead"`` the opening."""
    return f'<p class="{kind}">{escape(text)}</p>'


def code(text: str, *, columns: bool = False) -> str:
    """Text to copy, as it is; `columns` sets many short lines in two columns."""
    return f"<pre{' class=columns' if columns else ''}>{escape(text.strip())}</pre>"


def fold(title: str, body: str) -> str:
    """A part that opens on a click."""
    return f"<details><summary>{escape(title)}</summary>{body}</details>"


def render(title: str, lead: str, opening: str, sections: Sequence[Section], footer: str) -> str:
    """The whole page. It refers to nothing outside itself."""
    links = "".join(f'<a href="#{section.anchor}">{escape(section.title)}</a>' for section in sections)
    parts = "".join(f'<section><h2 id="{section.anchor}">{escape(section.title)}</h2>{section.body}</section>' for section in sections)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)} · fastqat</title><style>{CSS}</style></head><body><main>"
        f"<h1>{escape(title)}</h1>{paragraph(lead, 'lead')}<nav>{links}</nav>{opening}{parts}"
        f"<footer>{escape(footer)}</footer></main></body></html>\n"
    )
