"""Descriptions of classes, from files or from WordNet, to word prompts with.

K-LITE, arXiv 2204.09222. Files have the form of ``knowledge/`` of the public GLIP code: class name → source → text.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from glip_adapt.core.captions import UNPRINTABLE, clean_name
from glip_adapt.core.wordnet import nltk_senses

WORDNET = "wordnet"
SOURCE = "description"
"""Source of a text that a file gives without one."""
FORM = "Expected YAML or JSON with a description for each class name, or with several by source."

_NAMES = ("name", "clean_name")  # fields of an entry that describe nothing
_NOTHING = ("", "~", "null", None)
_LISTED = 3  # texts of a list that are read, as in the published command (GLIPKNOW.GPT3_NUM)
_SENSES = 3
_MOST_BYTES = 2**23
_MOST_NAMED = 5


@dataclass(frozen=True)
class Knowledge:
    """Descriptions of classes by one source.

    Attributes:
        source: such as ``"def_wiki"``.
        texts: class name → description; a class without one keeps its plain name.
    """

    source: str
    texts: Mapping[str, str]


def load_knowledge(source: str | Path, classes: Sequence[str]) -> tuple[Knowledge, ...]:
    """Return descriptions of classes, one object per source: ``load_knowledge("knowledge.yaml", data.classes)``.

    Of a list of texts, the first three are joined. A class has an entry under its name, or else under the name in other
    letter case.

    Args:
        source: a YAML or JSON file with class name → text, list of texts, or source → text or list of texts, as the
            ``knowledge/*.yaml`` of the public code; or ``"wordnet"``, which is read by nltk (extra ``phrases``).
        classes: names to describe.

    Raises:
        FileNotFoundError: if the file is missing, or the data of WordNet are.
        RuntimeError: if nltk is needed and not installed.
        ValueError: if the file has another form, no text for a class, or one with control characters; or if WordNet has
            none of the classes.
    """
    if str(source) == WORDNET:
        return wordnet_knowledge(classes)
    path = Path(source)
    entries = _read(path)
    by_lower = {_plain(name): name for name in reversed(entries)}
    keys = {name: name if name in entries else by_lower.get(_plain(name)) for name in classes}
    if missing := [name for name, key in keys.items() if key is None]:
        raise ValueError(
            f"{path}: no entry for {_named(missing)}; it has {len(entries)} others. Describe each class under its name."
        )
    texts = {name: _texts(entries[key], f"{path}: {key!r}") for name, key in keys.items() if key is not None}
    return _by_source(texts)


def wordnet_knowledge(
    classes: Sequence[str], senses: Callable[[str], Sequence[str]] = nltk_senses
) -> tuple[Knowledge, ...]:
    """Return definitions by WordNet: of the first sense of each class, of the second, and of the third.

    A name that WordNet lacks is looked up by its last word; without that, the class keeps its plain name.

    Args:
        classes: names to describe.
        senses: returns the definitions of a noun; by default that of nltk.

    Raises:
        ValueError: if no class is found.
        RuntimeError, FileNotFoundError: of ``senses``, as for ``nltk_senses``.
    """
    texts = {}
    for name in classes:
        words = clean_name(name).split()
        found = (senses(" ".join(words)) or senses(words[-1])) if words else ()
        texts[name] = {f"{WORDNET} {number}": text for number, text in enumerate(found[:_SENSES], start=1)}
    if not any(texts.values()):
        raise ValueError(f"WordNet has none of {_named(classes)}. Describe the classes in a file.")
    return _by_source(texts)


def _by_source(texts: Mapping[str, Mapping[str, str]]) -> tuple[Knowledge, ...]:
    """Turn class name → source → text into one object per source, in the order in which sources come first."""
    sources = dict.fromkeys(source for found in texts.values() for source in found)
    return tuple(
        Knowledge(source, {name: found[source] for name, found in texts.items() if source in found})
        for source in sources
    )


def _read(path: Path) -> dict[str, Any]:
    """Return the entries of a file; every value of YAML is text, so that a class may be called no."""
    if not path.is_file():
        raise FileNotFoundError(f"No file of descriptions at {path}. Name a YAML or JSON file, or {WORDNET}.")
    try:
        if (size := path.stat().st_size) > _MOST_BYTES:
            raise ValueError(f"{size:,} bytes, more than {_MOST_BYTES:,}")
        text = path.read_text(encoding="utf-8-sig")
        content = json.loads(text) if path.suffix == ".json" else yaml.load(text, Loader=yaml.BaseLoader)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{path}: cannot be read ({reason}). {FORM}") from error
    if not isinstance(content, dict) or not content or not all(isinstance(name, str) for name in content):
        raise ValueError(f"{path}: holds no class names with descriptions. {FORM}")
    return content


def _texts(entry: Any, place: str) -> dict[str, str]:
    """Return source → text of an entry."""
    fields = entry if isinstance(entry, dict) else {SOURCE: entry}
    texts = {}
    for source, value in fields.items():
        if source in _NAMES:
            continue
        parts = value if isinstance(value, list) else [value]
        if not all(part is None or isinstance(part, str) for part in parts):
            raise ValueError(f"{place}: expected text for {str(source)!r}, got {str(value)[:100]!r}. {FORM}")
        text = "; ".join(_tidy(part) for part in parts[:_LISTED] if part not in _NOTHING)
        if UNPRINTABLE.search(f"{source}{text}"):
            raise ValueError(f"{place}: {str(source)!r} holds control characters. Write it without them.")
        if any(letter.isalnum() for letter in text):
            texts[str(source)] = text
    if not texts:
        raise ValueError(f"{place}: has no description. {FORM}")
    return texts


def _tidy(text: str) -> str:
    """Return a text in one line, with spaces instead of the underscores of WordNet, without its full stop."""
    return " ".join(text.replace("_", " ").split()).rstrip(" .")


def _plain(name: str) -> str:
    return clean_name(name).strip().casefold()


def _named(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MOST_NAMED} more" * (len(names) > _MOST_NAMED)
    return ", ".join(repr(name) for name in names[:_MOST_NAMED]) + more
