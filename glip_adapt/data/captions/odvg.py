"""ODVG (object detection and visual grounding): JSON lines, one image a line, captioned or with classes.

A line has ``filename``, ``height`` and ``width``, and one of two contents:

- ``"grounding": {"caption", "regions": [{"phrase", "bbox", "tokens_positive"}, …]}``, a caption. ``bbox`` is [left,
  top, right, bottom], edges in pixels, or a list of such boxes. ``tokens_positive`` are spans as of MDETR; without them
  a phrase stands where the caption first has its words. Regions of the same span are one phrase. A ``score`` in (0, 1]
  tells how sure a detector was.
- ``"detection": {"instances": [{"bbox", "label", "category"}, …]}``, classes. Each class on the image is a sentence,
  all others are ``absent``: those of the label map ``*label_map.json`` beside the file, or without one those of the
  file. With a label map, ``label`` names the class, as in the public loaders. Names that differ only in case,
  underscores and what stands in parentheses are one class. An image without instances has nothing to say, and is left
  out.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, overload

from glip_adapt.core.captions import Caption, build_caption, clean_name
from glip_adapt.core.files import written_whole
from glip_adapt.core.sentences import Span, places
from glip_adapt.data.caption_entries import (
    annotation_of,
    box_of,
    build_image,
    caption_of,
    file_name_of,
    image_folder,
    shown,
    size_of,
    span_of,
    text_of,
)
from glip_adapt.data.captioned import CaptionedImage, CaptionedSplit
from glip_adapt.data.documents import BoxXYWH
from glip_adapt.data.entries import image_path, score_of
from glip_adapt.data.label_files import read_json
from glip_adapt.data.layouts import first_keys

NAME = "odvg"
LAYOUT = "a .jsonl file with filename, height, width, and grounding or detection in each line, as ODVG"

_CONTENTS = ("grounding", "detection")
_MAP = "label_map.json"

_Box = tuple[int, BoxXYWH, float]
"""Label, box, and how sure a detector was of it."""


def recognises(path: Path) -> bool:
    """Tell whether a file has the suffix of JSON lines, or a JSON file starts with the keys of a line."""
    keys = first_keys(path) if path.suffix == ".json" else None
    return path.suffix == ".jsonl" or any(key in ("filename", *_CONTENTS) for key in keys or ())


def read(path: Path, images: Path | None) -> CaptionedSplit:
    """Return the images of a file; errors as ``CaptionFormat.read``."""
    classes = _Classes(path)
    folder: Path | None = None
    built: list[tuple[CaptionedImage, list[int] | None]] = []
    for place, entry in _lines(path):
        name = file_name_of(entry.get("filename"), place)
        folder = folder or image_folder(path, images, name)
        contents = [entry[key] for key in _CONTENTS if key in entry]
        if len(contents) != 1 or not isinstance(contents[0], dict):
            raise ValueError(f"{place}: expected an object under either grounding or detection, got {shown(entry)}.")
        if "grounding" in entry:
            caption, boxes = _grounded(contents[0], place)
            sentences, present = [caption], None
        else:
            present, boxes = classes.detected(contents[0], place)
            sentences = [classes.captions[number] for number in present]
        if sentences:
            stated = [annotation_of(label, box, score=score) for label, box, score in boxes]
            image = build_image(name, image_path(folder, name), size_of(entry, place), sentences, stated)
            built.append((image, present))
    if not built:
        raise ValueError(f"{path} holds no image with a caption or instances. It needs {LAYOUT}.")
    names = tuple(caption.names[0] for caption in classes.captions)
    return CaptionedSplit(
        path.stem,
        tuple(
            image if present is None else replace(image, absent=_Others(names, tuple(sorted(present))))
            for image, present in built
        ),
    )


def write(split: CaptionedSplit, path: Path) -> None:
    """Write images with their captions, each as one of regions; a phrase without a box is not told from other words.

    File names are relative to the folder of ``path`` where the images lie below it.
    """
    with written_whole(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        for image in split.images:
            record, caption = image.record, image.caption
            regions = []
            for one in record.annotations:
                left, top, width, height = one.bbox_xywh
                start, end = caption.spans[one.category_id]
                box = {"bbox": [left, top, left + width, top + height], "tokens_positive": [[start, end]]}
                sure = {"score": one.score} if one.score < 1 else {}
                regions.append({"phrase": caption.text[start:end], **box, **sure})
            inside = record.path.is_relative_to(path.parent)
            name = record.path.relative_to(path.parent) if inside else record.path
            entry = {"filename": name.as_posix(), "height": record.size_hw[0], "width": record.size_hw[1]}
            content = {"grounding": {"caption": caption.text, "regions": regions}}
            file.write(json.dumps(entry | content, ensure_ascii=False) + "\n")


@dataclass(frozen=True)
class _Others(Sequence[str]):
    """All names but some: a tuple for each image would hold the thousands of names of V3Det as often as it has images.

    Attributes:
        names: all of them.
        without: positions of those that are not in it, rising.
    """

    names: tuple[str, ...]
    without: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.names) - len(self.without)

    @overload
    def __getitem__(self, position: int) -> str: ...
    @overload
    def __getitem__(self, position: slice) -> tuple[str, ...]: ...
    def __getitem__(self, position: int | slice) -> str | tuple[str, ...]:
        if isinstance(position, slice):
            return tuple(self[i] for i in range(len(self))[position])
        place = range(len(self))[position]
        for left_out in self.without:
            place += left_out <= place
        return self.names[place]


class _Classes:
    """The classes of a file: those of its label map, or those met so far.

    Attributes:
        captions: each class as a sentence.
    """

    def __init__(self, path: Path) -> None:
        self.captions: list[Caption] = []
        self._path = path
        self._numbers: dict[str, int] = {}  # by what is the same in all writings of a name
        self._written: dict[str, int] = {}  # by names as they are written: cleaning each one takes half of the time

    def detected(self, content: Mapping[str, Any], place: str) -> tuple[list[int], list[_Box]]:
        """Return the numbers of the classes on an image, and its boxes, each with the position of its class there."""
        positions: dict[int, int] = {}
        boxes = []
        for where, instance in _objects(content, "instances", "instance", place):
            position = positions.setdefault(self._number_of(instance, where), len(positions))
            boxes.append((position, _xywh(instance.get("bbox"), where), score_of(instance)))
        return [*positions], boxes

    def _number_of(self, instance: Mapping[str, Any], place: str) -> int:
        label = instance.get("label")
        if not self._by_label or label is None:
            return self._add(instance.get("category"), place)
        if str(label) not in self._by_label:
            raise ValueError(f"{place}: the label map has no label {shown(label)}. Add it, or remove the instance.")
        return self._by_label[str(label)]

    def _add(self, name: Any, place: str) -> int:
        """Return the number of a class, a new one if it is new; ValueError if its name cannot be in a caption."""
        try:
            if name in self._written:
                return self._written[name]
            caption = build_caption([clean_name(name).strip()])
        except (TypeError, ValueError) as error:
            raise ValueError(f"{place}: expected the name of a class, got {shown(name)}. {error}") from error
        number = self._numbers.setdefault(caption.text.casefold(), len(self.captions))
        if number == len(self.captions):
            self.captions.append(caption)
        self._written[name] = number
        return number

    @functools.cached_property
    def _by_label(self) -> dict[str, int]:
        """Label → number of its class; empty without a label map."""
        file = _label_map_of(self._path)
        if file is None:
            return {}
        try:
            content = read_json(file)
        except ValueError as error:
            raise ValueError(f"{file}: expected JSON, which cannot be read ({error}). Get the file again.") from error
        if not isinstance(content, dict) or not content:
            raise ValueError(f'{file}: expected names by label, such as {{"0": "person"}}, got {shown(content)}.')
        return {label: self._add(name, f"{file}, label {shown(label)}") for label, name in content.items()}


def _label_map_of(path: Path) -> Path | None:
    """Return the label map beside a file; of several, the one whose name begins as that of the file.

    Raises:
        ValueError: if several may be meant.
    """
    found = sorted(path.parent.glob(f"*{_MAP}"))
    if len(found) > 1:
        found = [file for file in found if path.name.startswith(file.name.removesuffix(_MAP).rstrip("_-."))]
        longest = max((len(file.name) for file in found), default=0)
        found = [file for file in found if len(file.name) == longest]
        if not found:
            raise ValueError(
                f"{path.parent} has several label maps, and none is named after {path.name}. Name its own one "
                f"{path.stem}_{_MAP}."
            )
    return found[0] if found else None


def _grounded(content: Mapping[str, Any], place: str) -> tuple[Caption, list[_Box]]:
    """Return the caption of an image, and its boxes, each with the position of its phrase."""
    text = text_of(content.get("caption"), place)
    labels: dict[Span, int] = {}
    boxes = []
    for where, region in _objects(content, "regions", "region", place):
        label = labels.setdefault(_span_of(region, text, where), len(labels))
        stated = region.get("bbox")
        is_nested = isinstance(stated, list) and all(isinstance(box, list) for box in stated)
        nested: Any = stated if is_nested else [stated]
        boxes += [(label, _xywh(box, where), score_of(region)) for box in nested]
    return caption_of(text, [*labels]), boxes


def _span_of(region: Mapping[str, Any], text: str, place: str) -> Span:
    if region.get("tokens_positive"):
        return span_of(region["tokens_positive"], text, place)
    phrase = region.get("phrase")
    if not isinstance(phrase, str):
        raise ValueError(f"{place}: expected a phrase of the caption {shown(text)}, got {shown(phrase)}.")
    try:
        return places(text, phrase)[0]
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from error


def _xywh(value: Any, place: str) -> BoxXYWH:
    left, top, right, bottom = box_of(value, place)
    return left, top, right - left, bottom - top


def _objects(content: Mapping[str, Any], key: str, word: str, place: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the objects of a list with the place of each; ValueError if it is no list of objects."""
    entries = content.get(key)
    if not isinstance(entries, list):
        raise ValueError(f"{place}: expected a list of {key}, got {shown(entries)}.")
    for number, entry in enumerate(entries):
        if not isinstance(entry, dict):
            raise ValueError(f"{place}, {word} {number}: expected an object with bbox, got {shown(entry)}.")
        yield f"{place}, {word} {number}", entry


def _lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the objects of JSON lines with the place of each, counted from 1; empty lines do not count."""
    with path.open("rb") as opened:
        for number, line in enumerate(opened, start=1):
            if not line.strip():
                continue
            place = f"{path}, line {number}"
            try:
                entry = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{place}: expected JSON, which cannot be read ({error}). Mend the line.") from error
            if not isinstance(entry, dict):
                raise ValueError(f"{place}: expected an object, got {shown(entry)}.")
            yield place, entry
