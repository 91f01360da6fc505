"""Entries of captioned datasets: captions, spans, boxes and image files, each checked; what the readers share."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

from glip_adapt.core.captions import UNPRINTABLE, Caption
from glip_adapt.core.sentences import Span
from glip_adapt.core.sizes import SizeHW
from glip_adapt.data.captioned import CaptionedImage, CaptionedSplit
from glip_adapt.data.documents import BoxXYWH
from glip_adapt.data.entries import image_path, is_id
from glip_adapt.data.formats.coco import build_target
from glip_adapt.data.label_files import to_number
from glip_adapt.data.split import Annotation, ImageRecord

_IMAGE_FOLDERS = ("images", "flickr30k-images", "flickr30k_images", ".")  # beside the file of captions
_MOST_SHOWN = 100  # characters of an entry in a message


class CaptionFormat(Protocol):
    """A format of captioned images: a module of ``captions/`` with these names."""

    NAME: str
    LAYOUT: str
    "files that make it up, in one line"

    def recognises(self, path: Path) -> bool:
        """Tell whether a file has this format, also if something in it is damaged; never raises."""

    def read(self, path: Path, images: Path | None) -> CaptionedSplit:
        """Return the images of a file; they need not exist.

        Args:
            path: an existing file.
            images: file names are relative to this folder; None looks beside the file.

        Raises:
            FileNotFoundError: if a file that belongs to it is missing.
            ValueError: if an entry is not in the format; names the file and the entry.
        """


def image_folder(path: Path, images: Path | None, first: str) -> Path:
    """Return the folder that file names are relative to: the given one, or the one beside a file with the first image.

    If no folder beside the file has that image, it is the first one that exists.
    """
    if images is not None:
        return images
    found = [folder for name in _IMAGE_FOLDERS if (folder := path.parent / name).is_dir()]
    return next((folder for folder in found if os.path.isfile(image_path(folder, first))), found[0])


def file_name_of(value: Any, place: str) -> str:
    """Return the name of an image file; ValueError if it is none, or leads out of its folder."""
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{place}: expected the name of an image file, got {shown(value)}.")
    name = PurePosixPath(value.replace("\\", "/"))
    if name.is_absolute() or ".." in name.parts:
        raise ValueError(
            f"{place}: the image {shown(value)} is outside of the image folder. Write its path from that folder on."
        )
    return value


def size_of(entry: dict[str, Any], place: str) -> SizeHW:
    """Return the (height, width) in pixels that an entry states; ValueError if it states none."""
    sides: list[Any] = [entry.get("height"), entry.get("width")]
    if not all(is_id(side, int, float) and 1 <= side < 1e9 and side % 1 == 0 for side in sides):
        raise ValueError(f"{place}: expected height and width in pixels, got {shown(sides)}.")
    return int(sides[0]), int(sides[1])


def text_of(value: Any, place: str) -> str:
    """Return a caption; ValueError if it has no words, or holds control characters."""
    if not isinstance(value, str) or not value.strip(" \t\r\n."):
        raise ValueError(f"{place}: expected a caption with words, got {shown(value)}.")
    if UNPRINTABLE.search(value):
        raise ValueError(f"{place}: the caption {shown(value)} holds control characters. Write it without them.")
    return value


def span_of(value: Any, text: str, place: str) -> Span:
    """Return the span of ``tokens_positive``: from the first start to the last end, without blanks around the words.

    Args:
        value: ``[[start, end], …]``, characters of the caption, end exclusive; at least one.
        text: the caption.
        place: for messages.

    Raises:
        ValueError: if it is something else, or a span holds no words of the caption.
    """
    pairs = value if isinstance(value, list) and value else [value]
    for pair in pairs:
        is_pair = isinstance(pair, list | tuple) and len(pair) == 2 and all(is_id(end, int) for end in pair)
        if not (is_pair and 0 <= pair[0] < pair[1] <= len(text) and text[pair[0] : pair[1]].strip()):
            raise ValueError(
                f"{place}: expected spans [[start, end], …] of words of the caption {shown(text)}, which has "
                f"{len(text)} characters, got {shown(value)}. Count characters from 0, the end exclusive."
            )
    start, end = min(pair[0] for pair in pairs), max(pair[1] for pair in pairs)
    words = text[start:end]
    return start + len(words) - len(words.lstrip()), start + len(words.rstrip())


def box_of(value: Any, place: str) -> BoxXYWH:
    """Return the four numbers of a box; ValueError if they are not finite numbers."""
    try:
        a, b, c, d = map(to_number, value if isinstance(value, list) else [])
    except ValueError as error:
        raise ValueError(f"{place}: expected a box of four finite numbers, got {shown(value)}.") from error
    return a, b, c, d


def annotation_of(label: int, box: BoxXYWH, iscrowd: bool = False, score: float = 1.0) -> Annotation:
    """Return a box of a phrase; the label stands for the category id."""
    return Annotation(label, box, box[2] * box[3], iscrowd, score=score)


def caption_of(text: str, spans: Sequence[Span]) -> Caption:
    """Return a sentence as a caption, each phrase under the words that it has there."""
    return Caption(text, tuple(spans), tuple(text[start:end] for start, end in spans))


def build_image(
    image_id: int | str, path: Path, size_hw: SizeHW, sentences: Sequence[Caption], boxes: Sequence[Annotation]
) -> CaptionedImage:
    """Return an image with its caption; the boxes to learn from are those that public training learns from."""
    labels = range(sum(len(sentence.spans) for sentence in sentences))
    stated = tuple(boxes)
    record = ImageRecord(image_id, path, size_hw, partial(build_target, stated, labels, size_hw), stated)
    return CaptionedImage(record=record, sentences=tuple(sentences))


def shown(value: Any) -> str:
    """Return an entry for a message: printable, and not too long."""
    text = ascii(value)
    return text if len(text) <= _MOST_SHOWN else text[: _MOST_SHOWN - 3] + "..."
