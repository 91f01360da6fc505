"""Write the sections of a report as Markdown, LaTeX, or one HTML page."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from glip_adapt.core.markup import escape, format_document, format_table
from glip_adapt.core.plain_text import markdown

LABELS = ("trunk", "dataset", "method", "best", "next", "first", "second", "run", "error")
"""Columns of words; all others are numbers and stand on the right."""

_TEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$", "–": "--", "−": "$-$", "²": "$^2$",
    "<": "$<$", ">": "$>$", "|": r"\textbar{}", "[": "{[}",  # after the end of a row it would be a length
}  # fmt: skip

_STYLE = ":root { color-scheme: light dark; }"


@dataclass(frozen=True)
class Section:
    """A heading, paragraphs, and a table whose cells are text; of these only the heading is always there."""

    title: str
    text: str = ""
    table: pd.DataFrame | None = None

    @property
    def paragraphs(self) -> list[str]:
        """The text, cut at its empty lines."""
        return self.text.split("\n\n") if self.text else []


def format_markdown(sections: Sequence[Section]) -> str:
    """Return a document as Markdown; the first section is its head."""
    text = []
    for place, section in enumerate(sections):
        text.append(f"{'##' if place else '#'} {markdown(section.title)}")
        text += map(markdown, section.paragraphs)
        if section.table is not None:
            header, *rows = _escape_cells(section.table, markdown)
            rule = [":--" if column in LABELS else "--:" for column in section.table.columns]
            text.append("\n".join(f"| {' | '.join(row)} |" for row in (header, rule, *rows)))
    return "\n\n".join(text) + "\n"


def format_latex(sections: Sequence[Section]) -> str:
    """Return the tables of a document as LaTeX; they need the packages ``booktabs`` and ``longtable``."""
    blocks = [r"% \usepackage{booktabs, longtable}"]
    for section in sections:
        if section.table is not None:
            columns = "".join("l" if column in LABELS else "r" for column in section.table.columns)
            caption = _tex(f"{section.title}. {section.text}".strip())
            header, *rows = (rf"{' & '.join(row)} \\" for row in _escape_cells(section.table, _tex))
            head = [r"\toprule", header, r"\midrule"]
            lines = [rf"\begin{{longtable}}{{{columns}}}", rf"\caption{{{caption}}} \\", *head, r"\endfirsthead"]
            blocks.append("\n".join([*lines, *head, r"\endhead", *rows, r"\bottomrule", r"\end{longtable}"]))
    return "\n\n".join(blocks) + "\n"


def format_page(sections: Sequence[Section], figures: Mapping[str, bytes]) -> str:
    """Return a document and its figures as one HTML page that loads nothing, light or dark as the reader's system is.

    The first section is the head of the page; the figures, title → SVG, stand between it and the tables.
    """
    head, *rest = sections
    titles = [*figures, *(section.title for section in rest)]
    images = {title: base64.b64encode(svg).decode() for title, svg in figures.items()}
    bodies = [f'<img alt="{escape(title)}" src="data:image/svg+xml;base64,{svg}">' for title, svg in images.items()]
    bodies += [f"<h2>{escape(section.title)}</h2>{_body(section)}" for section in rest]
    links = "".join(f'<a href="#s{place}">{escape(title)}</a> ' for place, title in enumerate(titles))
    parts = [f'<section id="s{place}">{body}</section>' for place, body in enumerate(bodies)]
    body = "\n".join([f"<h1>{escape(head.title)}</h1>", _body(head), f"<nav>{links}</nav>", *parts])
    return format_document(head.title, body, _STYLE)


def _body(section: Section) -> str:
    """Return the paragraphs and the table of a section as HTML."""
    text = "".join(f"<p>{escape(paragraph)}</p>" for paragraph in section.paragraphs)
    if section.table is None:
        return text
    header, *rows = _escape_cells(section.table, escape)
    return text + format_table(header, rows, [column in LABELS for column in section.table.columns])


def _escape_cells(table: pd.DataFrame, escape_text: Callable[[str], str]) -> list[list[str]]:
    """Return the header and the rows of a table as text of some markup."""
    rows = [list(table.columns), *table.to_numpy().tolist()]
    return [[escape_text(str(cell)) for cell in row] for row in rows]


def _tex(text: str) -> str:
    """Return text as LaTeX prints it."""
    return "".join(_TEX.get(character, character) for character in text)
