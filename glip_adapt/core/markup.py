"""Write HTML pages that load nothing: the frame of a page, tables, escaped text."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence

from glip_adapt.core.plain_text import plain

STYLE = """
body { margin: 0 auto; max-width: 80rem; padding: 1.2rem; font: 1rem/1.5 system-ui, sans-serif; }
p { max-width: 46rem; }
nav a { margin-right: 1.1rem; }
section { margin-top: 2rem; overflow-x: auto; }
img { max-width: 100%; background: white; }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .7rem; text-align: right; border-bottom: 1px solid #8886; }
.label { text-align: left; }
.number { white-space: nowrap; }
"""
"""Style that all pages share."""


def escape(text: str) -> str:
    """Return any text as HTML shows it, in an attribute as well; control codes are spelled out."""
    return html.escape(plain(text))


def format_document(title: str, body: str, style: str) -> str:
    """Return a whole page in English; ``title`` is text, ``body`` HTML, ``style`` CSS."""
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}{style}</style></head><body>\n{body}\n</body></html>\n"
    )


def format_table(header: Sequence[str], rows: Iterable[Sequence[str]], is_label: Sequence[bool]) -> str:
    """Return a table of cells that are HTML already; columns of labels stand on the left, numbers on the right."""
    kinds = ["label" if left else "number" for left in is_label]
    lines = [("th", header), *(("td", row) for row in rows)]
    return (
        "<table>\n"
        + "".join(
            "<tr>"
            + "".join(f'<{tag} class="{kind}">{cell}</{tag}>' for kind, cell in zip(kinds, cells, strict=True))
            + "</tr>\n"
            for tag, cells in lines
        )
        + "</table>"
    )
