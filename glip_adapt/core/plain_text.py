"""Make text from files and servers fit for a terminal, a table or a page."""

from __future__ import annotations

import html
import re

MOST_SHOWN = 200  # characters of an excerpt

# Control characters but tab and new line; marks that change the direction of writing; halves of surrogate pairs.
_UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")

# Opens code, emphasis, an image, a cell, a formula, or a link (of an address too); underscores in words do not.
_MARKDOWN = re.compile(r"[\\`*\[\]|!#~$@]|://|(?<=www)\.|(?<![^\W_])_|_(?![^\W_])", re.IGNORECASE)


def plain(text: str) -> str:
    """Spell out control codes in ``text``, such as ``\\x1b``; tabs and new lines stay."""
    return _UNSAFE.sub(lambda found: ascii(found.group())[1:-1], text)


def one_line(text: str) -> str:
    """Return plain ``text`` in one line, with single spaces."""
    return " ".join(plain(text).split())


def excerpt(text: str) -> str:
    """Return the first 200 characters of plain ``text``, in one line."""
    return one_line(text)[:MOST_SHOWN]


def markdown(text: str) -> str:
    """Escape ``text`` for Markdown, in one line; it is shown unchanged."""
    return _MARKDOWN.sub(r"\\\g<0>", html.escape(one_line(text), quote=False))


def duration(seconds: float) -> str:
    """Return a time as people say it."""
    return f"{seconds:.0f} seconds" if seconds < 90 else f"{seconds / 60:.0f} minutes"
