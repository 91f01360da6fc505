"""Read Flickr30k Entities: sentences about images, their phrases, and the boxes of each phrase.

The folder is laid out as published: a list of image ids for each split, such as ``test.txt``; for each image
``Annotations/ID.xml`` with boxes, and ``Sentences/ID.txt`` with one sentence a line, phrases in brackets as in
``[/EN#42/people/clothing a man] smiles .``
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from defusedxml import ElementTree
from numpy.typing import NDArray

_PHRASE = re.compile(r"\[/EN#(?P<chain>[^/\s\]]+)(?P<types>(?:/[^/\s\]]+)*)\s+(?P<text>[^\[\]]+)\]")
_CORNERS = ("xmin", "ymin", "xmax", "ymax")


@dataclass(frozen=True, kw_only=True)
class Phrase:
    """A phrase of a sentence.

    Attributes:
        text: its words.
        types: kinds of things, such as ``people`` or ``clothing``.
        boxes_xyxy: (M, 4) left, top, right, bottom in pixels; none for what is not visible or is the whole scene.
    """

    text: str
    types: tuple[str, ...]
    boxes_xyxy: NDArray[np.float64]


Sentences = dict[str, tuple[tuple[Phrase, ...], ...]]
"""Image id → its sentences → their phrases."""


def read_sentences(split_file: Path) -> Sentences:
    """Return the sentences of a split: ``read_sentences(Path("flickr30k/test.txt"))``.

    Raises:
        FileNotFoundError: if the list, or the sentences or boxes of an image, are missing.
        ValueError: if a file is not in the published form.
    """
    ids = _text(split_file, "list of image ids, one a line, from Flickr30k Entities").split()
    if not ids:
        raise ValueError(f"{split_file} lists no images. Expected image ids, one a line.")
    return {image_id: _read_image(split_file.parent, image_id) for image_id in ids}


def _read_image(folder: Path, image_id: str) -> tuple[tuple[Phrase, ...], ...]:
    file = folder / "Sentences" / f"{image_id}.txt"
    lines = [line for line in _text(file, "sentences of an image").split("\n") if line.strip()]
    boxes = _read_boxes(folder / "Annotations" / f"{image_id}.xml")
    return tuple(_read_sentence(line, boxes, f"{file}, sentence {number}") for number, line in enumerate(lines))


def _read_sentence(line: str, boxes: dict[str, list[list[float]]], place: str) -> tuple[Phrase, ...]:
    if re.search(r"[\[\]]", _PHRASE.sub("", line)):
        raise ValueError(
            f"{place}: expected phrases as in [/EN#42/people a man], got {line[:200]!r}. Mend its brackets."
        )
    return tuple(
        Phrase(
            text=" ".join(found["text"].split()),
            types=tuple(found["types"].split("/")[1:]),
            boxes_xyxy=np.array(boxes.get(found["chain"], []), dtype=np.float64).reshape(-1, 4),
        )
        for found in _PHRASE.finditer(line)
    )


def _read_boxes(file: Path) -> dict[str, list[list[float]]]:
    """Return the boxes of each chain of phrases that mean the same."""
    text = _text(file, "boxes of an image")
    try:
        root: Any = ElementTree.fromstring(text)
        boxes: dict[str, list[list[float]]] = {}
        for entry in root.findall("object"):
            if (box := entry.find("bndbox")) is not None:
                corners = [float(box.findtext(corner, "")) for corner in _CORNERS]
                for chain in entry.findall("name"):
                    boxes.setdefault(chain.text, []).append(corners)
    except (ElementTree.ParseError, ValueError) as error:
        raise ValueError(f"{file}: expected XML of Flickr30k Entities with whole boxes, got {error}.") from error
    return boxes


def _text(file: Path, what: str) -> str:
    if not file.is_file():
        raise FileNotFoundError(f"No file {file}: expected the {what}. Unpack Flickr30k Entities there.")
    return file.read_bytes().decode("utf-8-sig", "replace")
