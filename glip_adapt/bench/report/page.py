"""A report as one HTML page: every figure and table in one file, which needs no network and loads nothing."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from html import escape

from glip_adapt.bench.report.document import LABELS, MISSING, Section
from glip_adapt.bench.report.plotting import COLOURS, GREY, RULE

_DARK: Mapping[str, str] = {
    **dict(zip(COLOURS, ("#4FA3E0", "#F08A3C", "#2FC89B", "#E29BC4", "#F0B83A", "#7CC8F2", "#E8E8E8"), strict=True)),
    GREY: "#A8ADB4",
    RULE: "#343A42",
    "#FFFFFF": "#15181C",
}
"""Colour of a figure on paper → the same on a dark screen; black and white are ink and paper."""

_LEAST_SCALE = 0.65  # of a figure, so that its words stay readable

_STYLE = """
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 80rem; padding: 1.2rem; font: 1rem/1.5 system-ui, sans-serif;
  color: var(--000000); background: var(--FFFFFF); }
h1 { margin: 0 0 .5rem; font-size: 1.7rem; line-height: 1.2; }
h2 { margin: 2.2rem 0 .5rem; font-size: 1.2rem; }
p { max-width: 46rem; margin: .5rem 0; }
nav ul { padding: 0; display: flex; flex-wrap: wrap; gap: .2rem 1.1rem; list-style: none; font-size: .9rem; }
a { color: var(--0072B2); }
figure { margin: 1.5rem 0; }
.scroll { overflow-x: auto; }
.scroll svg { display: block; max-width: 100%; height: auto; fill: var(--000000); }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; white-space: nowrap; }
th, td { padding: .25rem .7rem; text-align: right; border-bottom: 1px solid var(--E4E4E4); }
th { border-bottom-color: var(--555555); cursor: pointer; font-weight: 600; }
th.label, td.label { text-align: left; }
td.missing { color: var(--555555); }
td.long { white-space: normal; min-width: 18rem; }
th[aria-sort=ascending]::after { content: " ↑"; }
th[aria-sort=descending]::after { content: " ↓"; }
tbody tr:hover { background: var(--E4E4E4); }
@media print { th { cursor: auto; } nav { display: none; } }
"""

_SCRIPT = """
const size = { k: 1e3, M: 1e6, G: 1e9 };
const value = text => {
  const found = text.replace("−", "-").replaceAll(",", "").match(/^([+-]?[0-9.]+)(?: ([kMG])B)?/);
  return found ? parseFloat(found[1]) * (size[found[2]] || 1) : null;
};
document.querySelectorAll("th").forEach(head => head.addEventListener("click", () => {
  const up = head.getAttribute("aria-sort") !== "ascending", body = head.closest("table").tBodies[0];
  const cell = row => row.cells[head.cellIndex].textContent;
  const words = head.classList.contains("label");
  head.parentNode.querySelectorAll("th").forEach(other => other.removeAttribute("aria-sort"));
  head.setAttribute("aria-sort", up ? "ascending" : "descending");
  [...body.rows].sort((one, two) => {
    const a = words ? cell(one) : value(cell(one)), b = words ? cell(two) : value(cell(two));
    if (a === null || b === null) return (a === null) - (b === null);
    return (up ? 1 : -1) * (words ? a.localeCompare(b) : a - b);
  }).forEach(row => body.append(row));
}));
"""


def format_page(sections: Sequence[Section], figures: Mapping[str, str]) -> str:
    """Return a document and its figures as HTML, light or dark as the reader's system is; a click on a head sorts.

    Args:
        sections: from ``build_document``; the first is the head of the page.
        figures: title → SVG, as matplotlib writes it; they stand between the head and the tables.
    """
    head, *rest = sections
    titles = [*figures, *(section.title for section in rest)]
    links = "".join(f'<li><a href="#s{place}">{escape(title)}</a></li>' for place, title in enumerate(titles))
    parts = [f"<h1>{escape(head.title)}</h1>", _paragraphs(head.text), f"<nav><ul>{links}</ul></nav>", "<main>"]
    for place, (title, svg) in enumerate(figures.items()):
        drawing = _inline(svg, title, f"f{place}-")  # which holds the title
        parts.append(f'<section id="s{place}"><figure class="scroll">{drawing}</figure></section>')
    for place, section in enumerate(rest, start=len(figures)):
        table = "" if section.table is None else _table(section)
        parts.append(
            f'<section id="s{place}"><h2>{escape(section.title)}</h2>{_paragraphs(section.text)}{table}</section>'
        )
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta name="color-scheme" content="light dark"><title>{escape(head.title)}</title>'
        f"<style>{_variables()}{_STYLE}</style></head><body>\n"
        + "\n".join([*parts, "</main>"])
        + f"\n<script>{_SCRIPT}</script></body></html>\n"
    )


def _variables() -> str:
    """Return one CSS variable per colour of the figures, named by it, light and dark."""
    light = "".join(f"--{colour[1:]}: {colour};" for colour in _DARK)
    dark = "".join(f"--{colour[1:]}: {other};" for colour, other in _DARK.items())
    return f"\n:root {{ {light} }}\n@media screen and (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}"


def _inline(svg: str, title: str, prefix: str) -> str:
    """Return an SVG to stand inside the page: ids of its own, colours of the page, a name for those who cannot see."""
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{prefix}", svg)
    svg = re.sub(r"#([0-9a-f]{6})\b(?=[;\" ])", lambda match: _themed(match.group(1)), svg)
    (width,) = re.findall(r"<svg[^>]* width=\"([0-9.]+)pt\"", svg)
    least = f"min-width: {_LEAST_SCALE * float(width):.0f}pt"  # scrolls where the screen is narrower
    return svg.replace("<svg ", f'<svg role="img" aria-label="{escape(title)}" style="{least}" ', 1)


def _themed(colour: str) -> str:
    """Return the variable of a colour, or the colour itself if the page has none for it."""
    return f"var(--{colour.upper()})" if f"#{colour.upper()}" in _DARK else f"#{colour}"


def _paragraphs(text: str) -> str:
    return "".join(f"<p>{escape(paragraph)}</p>" for paragraph in text.split("\n\n") if paragraph)


def _table(section: Section) -> str:
    """Return a table that scrolls on its own where the screen is narrow."""
    assert section.table is not None
    kinds = ["label" if column in LABELS else "" for column in section.table.columns]
    head = "".join(
        f'<th scope="col" class="{kind}">{escape(str(name))}</th>'
        for kind, name in zip(kinds, section.table.columns, strict=True)
    )
    rows = "".join(
        "<tr>" + "".join(_cell(str(value), kind) for kind, value in zip(kinds, row, strict=True)) + "</tr>\n"
        for row in section.table.itertuples(index=False)
    )
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>\n{rows}</tbody></table></div>'


def _cell(text: str, kind: str) -> str:
    """Return a cell; long words wrap, and what is missing is grey."""
    kinds = f"{kind} {'missing' if text.startswith(MISSING) else ''} {'long' if len(text) > 60 else ''}".split()
    return f'<td class="{" ".join(kinds)}">{escape(text)}</td>' if kinds else f"<td>{escape(text)}</td>"
