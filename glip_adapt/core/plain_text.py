"""Text from files, made fit for a terminal, a table or a page: it stays text, whatever it holds."""

from __future__ import annotations

import html
import re

# Control characters but tab and new line; marks that change the direction of writing; halves of surrogate pairs.
_UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")

# What opens code, emphasis, a picture, a cell, a formula, or a link (of an address too); underscores in words do not.
_MARKDOWN = re.compile(r"[\\`*\[\]|!#~$@]|://|(?<=www)\.|(?<![^\W_])_|_(?![^\W_])", re.IGNORECASE)


def plain(text: str) -> str:
    """Return ``text`` with control codes spelled out, such as ``\\x1b``."""
    return _UNSAFE.sub(lambda found: ascii(found.group())[1:-1], text)


def markdown(text: str) -> str:
    """Return ``text`` as Markdown that shows it, in one line, whatever it looks like."""
    return _MARKDOWN.sub(r"\\\g<0>", html.escape(" ".join(plain(text).split()), quote=False))
