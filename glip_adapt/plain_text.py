"""Text from files, made fit for a terminal, a table or a page: control codes are spelled out."""

from __future__ import annotations

import re

# Control characters but tab and new line; marks that change the direction of writing; halves of surrogate pairs.
_UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def plain(text: str) -> str:
    """Return ``text`` with control codes spelled out, such as ``\\x1b``."""
    return _UNSAFE.sub(lambda found: ascii(found.group())[1:-1], text)
