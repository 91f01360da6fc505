"""Read Flickr30k Entities: sentences about images, their phrases, and the boxes of each phrase.

The folder is laid out as published: a list of image ids for each split, such as ``test.txt``; for each image
``Annotations/ID.xml`` with boxes, and ``Sentences/ID.txt`` with one sentence a line, phrases in brackets as in
``[/EN#42/people/clothing a man] smiles .``
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from defusedxml import ElementTree
from numpy.typing import NDArray

from glip_adapt.core.sizes import SizeHW

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


@dataclass(frozen=True, kw_only=True)
class Sentence:
    """A sentence about an image.

    Attributes:
        text: the sentence without the marks of its phrases.
        phrases: in their order.
        spans: (start, end) of each phrase in the text, end exclusive.
    """

    text: str
    phrases: tuple[Phrase, ...]
    spans: tuple[tuple[int, int], ...]


@dataclass(frozen=True, kw_only=True)
class DescribedImage:
    """An image with its sentences.

    Attributes:
        image_id: its name in the list of the split.
        size_hw: (height, width) in pixels; None if the file of boxes states none.
        sentences: in their order.
    """

    image_id: str
    size_hw: SizeHW | None
    sentences: tuple[Sentence, ...]


Sentences = dict[str, tuple[tuple[Phrase, ...], ...]]
"""Image id → its sentences → their phrases."""


def read_sentences(split_file: Path) -> Sentences:
    """Return the sentences of a split: ``read_sentences(Path("flickr30k/test.txt"))``; errors as ``read_images``."""
    images = read_images(split_file)
    return {image.image_id: tuple(sentence.phrases for sentence in image.sentences) for image in images}


def read_images(split_file: Path) -> Iterator[DescribedImage]:
    """Yield the images of a split with their sentences, in the order of the list.

    Raises:
        FileNotFoundError: if the list, or the sentences or boxes of an image, are missing.
        ValueError: if a file is not in the published form.
    """
    ids = _text(split_file, "list of image ids, one a line, from Flickr30k Entities").split()
    if not ids:
        raise ValueError(f"{split_file} lists no images. Expected image ids, one a line.")
    for image_id in ids:
        yield _read_image(split_file.parent, image_id)


def _read_image(folder: Path, image_id: str) -> DescribedImage:
    file = folder / "Sentences" / f"{image_id}.txt"
    lines = [line for line in _text(file, "sentences of an image").split("\n") if line.strip()]
    size_hw, boxes = _read_annotations(folder / "Annotations" / f"{image_id}.xml")
    sentences = (_read_sentence(line, boxes, f"{file}, sentence {number}") for number, line in enumerate(lines))
    return DescribedImage(image_id=image_id, size_hw=size_hw, sentences=tuple(sentences))


def _read_sentence(line: str, boxes: dict[str, list[list[float]]], place: str) -> Sentence:
    if re.search(r"[\[\]]", _PHRASE.sub("", line)):
        raise ValueError(
            f"{place}: expected phrases as in [/EN#42/people a man], got {line[:200]!r}. Mend its brackets."
        )
    text, place_in_line, phrases, spans = "", 0, [], []
    for found in _PHRASE.finditer(line):
        words = " ".join(found["text"].split())
        text = (text + line[place_in_line : found.start()]).lstrip()
        spans.append((len(text), len(text) + len(words)))
        text, place_in_line = text + words, found.end()
        boxes_xyxy = np.array(boxes.get(found["chain"], []), dtype=np.float64).reshape(-1, 4)
        phrases.append(Phrase(text=words, types=tuple(found["types"].split("/")[1:]), boxes_xyxy=boxes_xyxy))
    return Sentence(text=(text + line[place_in_line:]).strip(), phrases=tuple(phrases), spans=tuple(spans))


def _read_annotations(file: Path) -> tuple[SizeHW | None, dict[str, list[list[float]]]]:
    """Return the size of an image, and the boxes of each chain of phrases that mean the same."""
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
    height, width = (root.findtext(f"size/{side}", "").strip() for side in ("height", "width"))
    is_stated = all(re.fullmatch("[1-9][0-9]{0,8}", side) for side in (height, width))
    return (int(height), int(width)) if is_stated else None, boxes


def _text(file: Path, what: str) -> str:
    if not file.is_file():
        raise FileNotFoundError(f"No file {file}: expected the {what}. Unpack Flickr30k Entities there.")
    return file.read_bytes().decode("utf-8-sig", "replace")
