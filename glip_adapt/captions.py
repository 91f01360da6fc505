"""Class names → the caption that GLIP reads, and where each name stands in it.

GLIP, arXiv 2112.03857, section 3.1; cleaning and joining follow ``convert_od_to_grounding_simple`` in
maskrcnn_benchmark/data/datasets/od_to_grounding.py of the public code.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

SEPARATOR = ". "


@dataclass(frozen=True, kw_only=True)
class ClassPrompt:
    """How one class is worded in the caption: only ``name`` is matched to boxes, the rest is context."""

    name: str
    prefix: str = ""
    suffix: str = ""


@dataclass(frozen=True)
class Caption:
    """A caption and the character span of each class name in it.

    Attributes:
        text: the string given to the tokenizer.
        spans: (start, end) per class, end exclusive, in the order of the classes.
        names: the cleaned name of each class.
    """

    text: str
    spans: tuple[tuple[int, int], ...]
    names: tuple[str, ...]


def clean_name(name: str) -> str:
    """Return ``name`` without parenthesised text, with underscores and double spaces turned into single spaces."""
    name = re.sub(r"\(.*\)", "", name)
    return name.replace("_", " ").replace("  ", " ")


def build_caption(classes: Sequence[str | ClassPrompt]) -> Caption:
    """Return the caption of ``classes``, joined by ``". "`` without a trailing separator.

    Args:
        classes: one entry per class, in label order; a plain string is its own name.

    Raises:
        ValueError: if there is no class, or a name is empty once cleaned.
    """
    if not classes:
        raise ValueError("A caption needs at least one class name; got none. Name what should be detected.")
    prompts = [ClassPrompt(name=entry) if isinstance(entry, str) else entry for entry in classes]
    text = ""
    spans: list[tuple[int, int]] = []
    names: list[str] = []
    for prompt in prompts:
        name = clean_name(prompt.name)
        if not name.strip():
            raise ValueError(
                f"Class name {prompt.name!r} is empty after cleaning (text in parentheses is dropped). "
                "Give it a name that can be written in a caption."
            )
        text += SEPARATOR * bool(spans) + prompt.prefix
        spans.append((len(text), len(text) + len(name)))
        names.append(name)
        text += name + prompt.suffix
    return Caption(text, tuple(spans), tuple(names))
