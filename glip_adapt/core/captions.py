"""Build the caption that a detector reads from class names, with the span of each name.

GLIP, arXiv 2112.03857, section 3.1; cleaning and joining follow ``convert_od_to_grounding_simple`` in
maskrcnn_benchmark/data/datasets/od_to_grounding.py of the public code.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

SEPARATOR = ". "
MAX_TOKENS = 256  # with [CLS] and [SEP]; 254 remain for the caption
UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")
"""Control characters but tab and new lines, and halves of surrogate pairs: kept from tokenizer and terminal."""


@dataclass(frozen=True, kw_only=True)
class ClassPrompt:
    """Wording of a class in the caption: boxes are matched to ``name`` only, prefix and suffix are context."""

    name: str
    prefix: str = ""
    suffix: str = ""


@dataclass(frozen=True)
class Caption:
    """A caption with the character span of each class name.

    Attributes:
        text: input of the tokenizer.
        spans: (start, end) per class, end exclusive, in the order of the classes.
        names: the cleaned name of each class.
    """

    text: str
    spans: tuple[tuple[int, int], ...]
    names: tuple[str, ...]


def clean_name(name: str) -> str:
    """Remove text in parentheses from ``name``, and turn underscores and double spaces into single spaces."""
    name = re.sub(r"^([^(\n]*)\(.*\)", r"\1", name, flags=re.MULTILINE)  # from each line's start: in linear time
    return name.replace("_", " ").replace("  ", " ")


def as_prompts(classes: Sequence[str | ClassPrompt]) -> tuple[ClassPrompt, ...]:
    """Return classes as prompts; a plain name is its own wording."""
    return tuple(ClassPrompt(name=entry) if isinstance(entry, str) else entry for entry in classes)


def build_caption(classes: Sequence[str | ClassPrompt]) -> Caption:
    """Join classes, in label order, to a caption, with ``". "`` between them; a plain string is its own name.

    Raises:
        ValueError: if there is no class, a name is empty once cleaned, or one holds control characters.
    """
    if not classes:
        raise ValueError("A caption needs at least one class name; got none. Name at least one class.")
    text = ""
    spans: list[tuple[int, int]] = []
    for prompt in as_prompts(classes):
        name = clean_name(prompt.name)
        if not name.strip():
            raise ValueError(
                f"Class name {prompt.name!r} is empty after cleaning (text in parentheses is dropped). "
                "Give it a name that can be written in a caption."
            )
        wording = prompt.prefix + name + prompt.suffix
        if UNPRINTABLE.search(wording):
            raise ValueError(f"The class {wording!a} holds control characters. Write it without them.")
        text += SEPARATOR * bool(spans) + prompt.prefix
        spans.append((len(text), len(text) + len(name)))
        text += name + prompt.suffix
    return Caption(text, tuple(spans), tuple(text[start:end] for start, end in spans))
