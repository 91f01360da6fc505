"""COCO files and pictures as they lie on disk: opened with a clear error, or searched for everything that is wrong.

One scan serves both: loading stops at its first finding that leaves the meaning of the file open, ``check_split``
lists them all.
"""

from __future__ import annotations

import json
import os
import shlex
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from glip_adapt.structures import SizeHW

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
    "zero or negative box size": "boxes with positive width and height",
}
_UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)
_FLOAT32_MAX = torch.finfo(torch.float32).max
_OUTSIDE_TOLERANCE = 0.01  # pixels; conversions between formats overshoot by rounding


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
    found: dict[str, list[str]] = {}
    for kind, example in chain(findings, _scan(document, Path(image_dir)), _scan_pictures(document, Path(image_dir))):
        found.setdefault(kind, []).append(example)
    return [Defect(kind, len(examples), tuple(examples[:5])) for kind, examples in found.items()]


def load_document(
    annotation_file: Path, image_dir: Path | None, categories: Mapping[int, str] | None = None
) -> dict[str, Any]:
    """Return the content of a COCO file whose meaning is clear.

    Args:
        annotation_file: COCO JSON.
        image_dir: folder in which every picture must exist; None where pictures are not needed.
        categories: id → name instead of the file's own categories.

    Raises:
        FileNotFoundError: if the annotation file or a picture is missing.
        ValueError: at the first other defect that ``check_split`` would list, except duplicate file names, duplicate
            annotation ids and boxes outside the picture, which leave the meaning clear.
    """
    document, findings = _read_document(annotation_file)
    if categories is not None and document is not None:
        document = {**document, "categories": [{"id": key, "name": value} for key, value in categories.items()]}
    for kind, example in chain(findings, _scan(document, image_dir)):
        if kind in _EXPECTED:
            raise _defect_error(annotation_file, kind, example)
    assert document is not None  # else there was a finding
    return document


def load_rgb(path: Path) -> Image.Image:
    """Return the picture at ``path`` as RGB, pixels as stored (no EXIF rotation).

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if Pillow cannot decode it.
    """
    with _opened(path) as image:
        return image.convert("RGB")


def picture_size(path: Path) -> SizeHW:
    """Return the stored (height, width) of the picture at ``path``; only the start of the file is read.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if Pillow does not know its format.
    """
    with _opened(path) as image:
        return image.height, image.width


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """Open a picture; whatever goes wrong while it is in use is one of two clear errors."""
    try:
        with Image.open(path) as image:
            yield image
    except FileNotFoundError:
        raise FileNotFoundError(f"No picture at {path}. `glip-adapt data check` lists every missing one.") from None
    except _UNREADABLE as error:
        raise ValueError(f"{path} is not a picture that Pillow can decode ({error}). Replace or remove it.") from error


def declared_size(entry: dict[str, Any]) -> SizeHW | None:
    """Return the (height, width) in pixels that an image entry states, if it does."""
    return None if entry.get("height") is None else (int(entry["height"]), int(entry["width"]))


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


def _scan(document: dict[str, Any] | None, image_dir: Path | None) -> Iterator[_Finding]:
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
    yield from _scan_images(_entries(document, "images"), image_dir, sizes)
    yield from _scan_annotations(_entries(document, "annotations"), categories, sizes)


def _scan_categories(entries: list[Any], known: set[int]) -> Iterator[_Finding]:
    """Yield what is wrong with the categories, and collect their ids in ``known``."""
    for index, entry in enumerate(entries):
        if not isinstance(entry, dict) or not _is_id(entry.get("id"), int) or not _is_text(entry.get("name")):
            yield "malformed entry", f"categories[{index}] is {_short(entry)}"
        elif entry["id"] in known:
            yield "duplicate category id", f"{entry['id']} ({entry['name']!r})"
        else:
            known.add(entry["id"])


def _scan_images(
    entries: list[Any], image_dir: Path | None, sizes: dict[int | str, SizeHW | None]
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
        if image_dir is not None and not os.path.isfile(image_dir / name):  # Path.is_file raises on overlong names
            yield "missing image file", str(image_dir / name)
        if image_dir is None and size_hw is None:
            yield "malformed entry", f"images[{index}] has no width and height, and no picture to read them from"
        names.add(name)
        sizes[image_id] = size_hw
    if len({isinstance(image_id, str) for image_id in sizes}) > 1:
        yield "malformed entry", "image ids mix numbers and text"


def _scan_annotations(
    entries: list[Any], categories: set[int], sizes: dict[int | str, SizeHW | None]
) -> Iterator[_Finding]:
    """Yield what is wrong with the boxes."""
    seen: set[int | str] = set()
    for index, entry in enumerate(entries):
        if not _is_annotation(entry):
            yield "malformed entry", f"annotations[{index}] is {_short(entry)}"
            continue
        annotation_id, bbox = entry.get("id"), entry["bbox"]
        what = f"annotation {index if annotation_id is None else annotation_id}"
        if annotation_id in seen:
            yield "duplicate annotation id", f"{annotation_id} (annotations[{index}])"
        if annotation_id is not None:
            seen.add(annotation_id)
        if entry["image_id"] not in sizes:
            yield "unknown image id", f"{what} names image {entry['image_id']}"
        if entry["category_id"] not in categories:
            yield "unknown category", f"{what} names category {entry['category_id']}"
        if not all(abs(value) <= _FLOAT32_MAX for value in bbox):
            yield "NaN or infinite box", f"{what} has bbox {bbox}"
        elif min(bbox[2:]) <= 0:
            yield "zero or negative box size", f"{what} has bbox {bbox}"
        elif _is_outside(bbox, sizes.get(entry["image_id"])):
            yield "box outside the picture", f"{what} has bbox {bbox} in image {entry['image_id']}"


def _scan_pictures(document: dict[str, Any] | None, image_dir: Path) -> Iterator[_Finding]:
    """Yield what is wrong with the pictures that exist, by decoding each."""
    for entry in _entries(document or {}, "images"):
        if not _is_image(entry) or not os.path.isfile(image_dir / entry["file_name"]):
            continue
        try:
            size_hw = load_rgb(image_dir / entry["file_name"]).size[::-1]
        except ValueError as error:
            yield "unreadable image", str(error)
            continue
        declared = declared_size(entry)
        if declared not in (None, size_hw):
            yield (
                "declared size differs from real size",
                f"{entry['file_name']}: declared (height, width) {declared}, stored {size_hw}",
            )


def _entries(document: dict[str, Any], key: str) -> list[Any]:
    entries = document.get(key)
    return entries if isinstance(entries, list) else []


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_id(value: Any, *types: type) -> bool:
    return isinstance(value, types) and not isinstance(value, bool)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _is_image(entry: Any) -> bool:
    """Tell whether an image entry has an id, a file name, and a size that is either absent or sound."""
    if not isinstance(entry, dict) or not _is_id(entry.get("id"), int, str) or not _is_text(entry.get("file_name")):
        return False
    sides: list[Any] = [entry.get("height"), entry.get("width")]
    return sides == [None, None] or all(_is_number(side) and 1 <= side < 1e9 and side % 1 == 0 for side in sides)


def _is_annotation(entry: Any) -> bool:
    """Tell whether an annotation entry has every part in the right type; the values are judged elsewhere."""
    if not isinstance(entry, dict) or not _is_id(entry.get("image_id"), int, str):
        return False
    bbox, area = entry.get("bbox"), entry.get("area")
    return (
        _is_id(entry.get("category_id"), int)
        and (entry.get("id") is None or _is_id(entry["id"], int, str))
        and isinstance(bbox, list)
        and len(bbox) == 4
        and all(map(_is_number, bbox))
        and (area is None or (_is_number(area) and 0 <= area <= _FLOAT32_MAX))
        and entry.get("iscrowd") in (None, 0, 1)
    )


def _is_outside(bbox: list[float], size_hw: SizeHW | None) -> bool:
    if size_hw is None:
        return False
    x, y, w, h = bbox
    over = max(-x, -y, x + w - size_hw[1], y + h - size_hw[0])
    return over > _OUTSIDE_TOLERANCE


def _short(entry: Any) -> str:
    text = repr(entry)
    return text if len(text) <= 100 else text[:97] + "..."
