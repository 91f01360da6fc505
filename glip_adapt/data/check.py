"""COCO files as they lie on disk: opened with a clear error, or searched for everything that is wrong.

One scan serves both. Loading stops at its first finding that leaves the meaning of the file open, and warns of those
that change a result; ``check_split`` lists them all.
"""

from __future__ import annotations

import json
import logging
import os
import shlex
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from glip_adapt.captions import clean_name
from glip_adapt.data.images import Header, load_rgb, read_header
from glip_adapt.structures import SizeHW

logger = logging.getLogger(__name__)

_Finding = tuple[str, str]  # kind of defect, one example of it

# What loading needs, by the defect that breaks it.
_EXPECTED = {
    "missing annotation file": "a COCO JSON file (`glip-adapt data fetch NAME` downloads a known dataset)",
    "malformed JSON": "a JSON object with the lists images, annotations and categories",
    "malformed entry": "images with id and file_name, annotations with image_id, category_id and bbox [x, y, width, "
    "height], categories with id and name",
    "empty split": "at least one picture and one category",
    "missing image file": "every file_name to exist below the image folder",
    "duplicate image id": "each image id once",
    "duplicate category id": "each category id once",
    "unknown image id": "annotations of listed images only",
    "unknown category": "annotations of listed categories only",
    "NaN or infinite box": "finite box coordinates",
}
# What changes a result although the meaning is clear, and what is done about it.
_WARNED = {
    "zero or negative box size": "Training leaves such boxes out, scoring keeps them",
    "annotation without a box": "Such annotations are left out",
    "odd area": "The area of the box is used instead",
    "odd iscrowd": "Such annotations count as single objects",
    "doubled box": "Every copy counts, and a detector can find only one of them: remove the others",
    "root category without boxes": "It is left out of the classes",
}
_FLOAT32_MAX = torch.finfo(torch.float32).max
_OUTSIDE_TOLERANCE = 0.01  # pixels; conversions between formats overshoot by rounding
_NO_SUPERCATEGORY = (None, "", "none")
_BACKGROUND_NAMES = ("__background__", "background")


@dataclass(frozen=True)
class Defect:
    """One kind of thing that is wrong with a split.

    Attributes:
        kind: what is wrong, in words.
        count: how often.
        examples: the first five places.
    """

    kind: str
    count: int
    examples: tuple[str, ...]


def check_split(annotation_file: Path, image_dir: Path) -> list[Defect]:
    """Return every defect of a COCO file and its pictures, by kind; an empty list means that all is well.

    Every picture is decoded, which takes a while on a large split. Bad content never raises.
    """
    document, findings = _read_document(Path(annotation_file))
    return _grouped(chain(findings, _scan(document, Path(image_dir)), _scan_pictures(document, Path(image_dir))))


def load_document(
    annotation_file: Path,
    image_dir: Path | None,
    categories: Mapping[int, str] | None = None,
    *,
    need_sizes: bool = True,
) -> dict[str, Any]:
    """Return the content of a COCO file whose meaning is clear, with one warning for each kind of doubtful entry.

    Args:
        annotation_file: COCO JSON.
        image_dir: folder in which every picture must exist; None where pictures are not needed.
        categories: id → name instead of the file's own categories.
        need_sizes: whether a file without pictures must state their sizes.

    Raises:
        FileNotFoundError: if the annotation file or a picture is missing.
        ValueError: at the first other defect that leaves the meaning of the file open.
    """
    document, findings = _read_document(annotation_file)
    if categories is not None and document is not None:
        document = {**document, "categories": [{"id": key, "name": value} for key, value in categories.items()]}
    doubtful = []
    for kind, example in chain(findings, _scan(document, image_dir, need_sizes)):
        if kind in _EXPECTED:
            raise _defect_error(annotation_file, kind, example)
        if kind in _WARNED:
            doubtful.append((kind, example))
    for defect in _grouped(doubtful):
        logger.warning(
            f"{annotation_file}: {defect.kind} ({defect.count} in all): {defect.examples[0]}. {_WARNED[defect.kind]}."
        )
    assert document is not None  # else there was a finding
    return document


def picture_path(image_dir: Path, file_name: str) -> Path:
    """Return where a picture lies; a name from Windows may have backslashes between folders."""
    path = image_dir / file_name
    if "\\" in file_name and not os.path.isfile(path):
        return image_dir / file_name.replace("\\", "/")
    return path


def declared_size(entry: Mapping[str, Any]) -> SizeHW | None:
    """Return the (height, width) in pixels that an image entry states, if it does."""
    return None if entry.get("height") is None else (int(entry["height"]), int(entry["width"]))


def box_of(entry: Mapping[str, Any]) -> list[float] | None:
    """Return the [x, y, width, height] of an annotation: the stated box, else that around its polygons, if any."""
    if entry.get("bbox"):
        return [float(value) for value in entry["bbox"]]
    polygons = entry.get("segmentation")
    points = [
        point
        for polygon in (polygons if isinstance(polygons, list) else ())
        if isinstance(polygon, list) and len(polygon) >= 6 and all(map(_is_number, polygon))
        for point in zip(polygon[::2], polygon[1::2], strict=False)
    ]
    if not points:
        return None
    xs, ys = zip(*points, strict=True)
    return [float(min(xs)), float(min(ys)), float(max(xs) - min(xs)), float(max(ys) - min(ys))]


def area_of(entry: Mapping[str, Any], box: list[float]) -> float:
    """Return the area of an annotation in square pixels: the stated one, else that of its box."""
    return float(entry["area"]) if _is_area(entry.get("area")) else box[2] * box[3]


def is_outside(bbox: Sequence[float], size_hw: SizeHW | None) -> bool:
    """Return whether a box [x, y, width, height] leaves a picture of this (height, width); False if it is unknown."""
    if size_hw is None:
        return False
    x, y, w, h = bbox
    over = max(-x, -y, x + w - size_hw[1], y + h - size_hw[0])
    return over > _OUTSIDE_TOLERANCE


def is_ambiguous(header: Header) -> bool:
    """Return whether the size of a picture cannot tell if boxes were drawn before or after its EXIF rotation."""
    height, width = header.size_hw
    return header.orientation in (2, 3, 4) or (header.orientation != 1 and height == width)


def root_category(document: Mapping[str, Any]) -> tuple[int, str] | None:
    """Return id and name of a category that only heads the others and has no box; exports of Roboflow hold one.

    It names no supercategory and all others name it as theirs, or it has id 0 and is called background.
    """
    categories = [entry for entry in _entries(document, "categories") if _is_category(entry)]
    used = {entry["category_id"] for entry in _entries(document, "annotations") if _is_annotation(entry)}
    for entry in categories:
        above = {str(other.get("supercategory")) for other in categories if other is not entry}
        heads = above == {entry["name"]} and entry.get("supercategory") in _NO_SUPERCATEGORY
        is_background = bool(above) and entry["id"] == 0 and entry["name"] in _BACKGROUND_NAMES
        if entry["id"] not in used and (heads or is_background):
            return entry["id"], entry["name"]
    return None


def _grouped(findings: Iterable[_Finding]) -> list[Defect]:
    """Return findings by kind, in the order in which the kinds came."""
    found: dict[str, list[str]] = {}
    for kind, example in findings:
        found.setdefault(kind, []).append(example)
    return [Defect(kind, len(examples), tuple(examples[:5])) for kind, examples in found.items()]


def _defect_error(annotation_file: Path, kind: str, example: str) -> FileNotFoundError | ValueError:
    error = FileNotFoundError if kind in ("missing annotation file", "missing image file") else ValueError
    return error(
        f"{annotation_file}: {kind}: {example}. Expected {_EXPECTED[kind]}. "
        f"Run `glip-adapt data check {shlex.quote(str(annotation_file))}` to list every defect."
    )


def _read_document(annotation_file: Path) -> tuple[dict[str, Any] | None, list[_Finding]]:
    """Return the parsed file, or None and what is wrong with it."""
    if not annotation_file.exists():
        return None, [("missing annotation file", f"no file at {annotation_file}")]
    try:
        document = json.loads(annotation_file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        return None, [("malformed JSON", f"cannot be read ({error})")]
    if not isinstance(document, dict):
        return None, [("malformed JSON", f"holds a {type(document).__name__} instead of an object")]
    return document, []


def _scan(document: dict[str, Any] | None, image_dir: Path | None, need_sizes: bool = True) -> Iterator[_Finding]:
    """Yield what the document alone shows to be wrong, and missing pictures unless ``image_dir`` is None."""
    if document is None:
        return
    for key in ("images", "annotations", "categories"):
        if not isinstance(document.get(key), list):
            came = f"is a {type(document[key]).__name__}" if key in document else "is missing"
            yield "malformed JSON", f"the list {key!r} {came}"
        elif not document[key] and key != "annotations":
            yield "empty split", f"no {key}"
    categories: set[int] = set()
    sizes: dict[int | str, SizeHW | None] = {}
    yield from _scan_categories(_entries(document, "categories"), categories)
    yield from _scan_images(_entries(document, "images"), image_dir, sizes, need_sizes)
    yield from _scan_annotations(_entries(document, "annotations"), categories, sizes)
    if (root := root_category(document)) is not None:
        yield "root category without boxes", f"category {root[0]} ({root[1]!r}) is no object but heads the others"


def _scan_categories(entries: list[Any], known: set[int]) -> Iterator[_Finding]:
    """Yield what is wrong with the categories, and collect their ids in ``known``."""
    wordings: dict[str, str] = {}
    for index, entry in enumerate(entries):
        if not isinstance(entry, dict) or not _is_id(entry.get("id"), int):
            yield "malformed entry", f"categories[{index}] is {_short(entry)}"
            continue
        if entry["id"] in known:
            yield "duplicate category id", f"{entry['id']} ({entry.get('name')!r})"
        known.add(entry["id"])
        name = entry.get("name")
        if not isinstance(name, str) or not name.strip():
            yield "malformed entry", f"categories[{index}] is {_short(entry)}"
            continue
        wording = " ".join(clean_name(name).casefold().split())
        if wording in wordings:
            yield "classes with one wording", f"{wordings[wording]!r} and {name!r} both read {wording!r} in a caption"
        wordings[wording] = name
        if foreign := _foreign_letters(wording):
            yield "class name outside the vocabulary", f"{name!r}: the text encoder reads English, not {foreign!r}"


def _scan_images(
    entries: list[Any], image_dir: Path | None, sizes: dict[int | str, SizeHW | None], need_sizes: bool
) -> Iterator[_Finding]:
    """Yield what is wrong with the image list, and collect the declared sizes by id."""
    names: set[str] = set()
    for index, entry in enumerate(entries):
        if not _is_image(entry):
            yield "malformed entry", f"images[{index}] is {_short(entry)}"
            continue
        image_id, name, size_hw = entry["id"], entry["file_name"], declared_size(entry)
        if image_id in sizes:
            yield "duplicate image id", f"{image_id} ({name})"
        if name in names:
            yield "duplicate file name", name
        if image_dir is not None and not os.path.isfile(picture_path(image_dir, name)):  # unlike Path, never raises
            yield "missing image file", str(image_dir / name)
        if image_dir is None and size_hw is None and need_sizes:
            yield "malformed entry", f"images[{index}] has no width and height, and no picture to read them from"
        names.add(name)
        sizes[image_id] = size_hw
    if len({isinstance(image_id, str) for image_id in sizes}) > 1:
        yield "malformed entry", "image ids mix numbers and text"


def _scan_annotations(
    entries: list[Any], categories: set[int], sizes: dict[int | str, SizeHW | None]
) -> Iterator[_Finding]:
    """Yield what is wrong with the boxes."""
    ids: set[int | str] = set()
    boxes: set[tuple[Any, ...]] = set()
    for index, entry in enumerate(entries):
        if not _is_annotation(entry):
            yield "malformed entry", f"annotations[{index}] is {_short(entry)}"
            continue
        annotation_id, image_id, category_id = entry.get("id"), entry["image_id"], entry["category_id"]
        what = f"annotation {index if annotation_id is None else annotation_id}"
        if annotation_id in ids:
            yield "duplicate annotation id", f"{annotation_id} (annotations[{index}])"
        if annotation_id is not None:
            ids.add(annotation_id)
        if image_id not in sizes:
            yield "unknown image id", f"{what} names image {image_id}"
        if category_id not in categories:
            yield "unknown category", f"{what} names category {category_id}"
        if entry.get("area") is not None and not _is_area(entry["area"]):
            yield "odd area", f"{what} has area {_short(entry['area'])}"
        if entry.get("iscrowd") not in (None, 0, 1):
            yield "odd iscrowd", f"{what} has iscrowd {_short(entry['iscrowd'])}"
        for kind, example in _scan_box(entry, sizes.get(image_id)):
            yield kind, f"{what} {example}"
        box = (image_id, category_id, bool(entry.get("iscrowd")), *(box_of(entry) or [index]))
        if box in boxes:
            yield "doubled box", f"{what} has the box and the class of another one in image {image_id}"
        boxes.add(box)


def _scan_box(entry: dict[str, Any], size_hw: SizeHW | None) -> Iterator[_Finding]:
    """Yield what is wrong with the box of one annotation."""
    if any(not abs(value) <= _FLOAT32_MAX for value in entry.get("bbox") or ()):
        yield "NaN or infinite box", f"has bbox {entry['bbox']}"
        return
    box = box_of(entry)
    if box is None:
        yield "annotation without a box", "has neither a bbox nor polygons"
    elif any(not abs(value) <= _FLOAT32_MAX for value in box):
        yield "NaN or infinite box", "has polygons that are not finite"
    elif min(box[2:]) <= 0:
        yield "zero or negative box size", f"has bbox {box}"
    elif is_outside(box, size_hw):
        yield "box outside the picture", f"has bbox {box} in image {entry['image_id']}"


def _scan_pictures(document: dict[str, Any] | None, image_dir: Path) -> Iterator[_Finding]:
    """Yield what is wrong with the pictures that exist, by decoding each."""
    for entry in _entries(document or {}, "images"):
        if not _is_image(entry) or not os.path.isfile(picture_path(image_dir, entry["file_name"])):
            continue
        path, declared = picture_path(image_dir, entry["file_name"]), declared_size(entry)
        try:
            size_hw = load_rgb(path, declared).size[::-1]
            header = read_header(path, declared)
        except ValueError as error:
            yield "unreadable image", str(error)
            continue
        if declared not in (None, size_hw):
            yield (
                "declared size differs from real size",
                f"{entry['file_name']}: declared (height, width) {declared}, stored {size_hw}",
            )
        if header.applied != header.orientation or is_ambiguous(header) or (header.applied != 1 and declared is None):
            done = "applied" if header.applied != 1 else "not applied: the declared size is that of the stored pixels"
            yield "EXIF orientation", f"{entry['file_name']}: {header.orientation}, {done}; look at its boxes"


def _entries(document: Mapping[str, Any], key: str) -> list[Any]:
    entries = document.get(key)
    return entries if isinstance(entries, list) else []


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_id(value: Any, *types: type) -> bool:
    return isinstance(value, types) and not isinstance(value, bool)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _is_area(value: Any) -> bool:
    return _is_number(value) and 0 <= value <= _FLOAT32_MAX


def _is_image(entry: Any) -> bool:
    """Tell whether an image entry has an id, a file name, and a size that is either absent or sound."""
    if not isinstance(entry, dict) or not _is_id(entry.get("id"), int, str) or not _is_text(entry.get("file_name")):
        return False
    sides: list[Any] = [entry.get("height"), entry.get("width")]
    return sides == [None, None] or all(_is_number(side) and 1 <= side < 1e9 and side % 1 == 0 for side in sides)


def _is_category(entry: Any) -> bool:
    return isinstance(entry, dict) and _is_id(entry.get("id"), int) and _is_text(entry.get("name"))


def _is_annotation(entry: Any) -> bool:
    """Tell whether what names an annotation has the right types; values are judged elsewhere."""
    if not isinstance(entry, dict) or not _is_id(entry.get("image_id"), int, str):
        return False
    bbox = entry.get("bbox")
    return (
        _is_id(entry.get("category_id"), int)
        and (entry.get("id") is None or _is_id(entry["id"], int, str))
        and (bbox in (None, []) or (isinstance(bbox, list) and len(bbox) == 4 and all(map(_is_number, bbox))))
    )


def _foreign_letters(text: str) -> str:
    """Return the characters of ``text`` that are no English letter once accents are removed, as BERT removes them."""
    plain = (c for c in unicodedata.normalize("NFD", text) if unicodedata.category(c) != "Mn")
    return "".join(c for c in plain if ord(c) > 127 and unicodedata.category(c)[0] in "LS")


def _short(entry: Any) -> str:
    text = repr(entry)
    return text if len(text) <= 100 else text[:97] + "..."
