"""Scan labels in COCO form: raise a clear error at a defect, warn about what is doubtful, or list all findings.

``require_sound`` raises at the first defect that leaves the meaning of a split open, and warns about what changes a
result. ``list_defects`` lists everything. Both use the same scan.
"""

from __future__ import annotations

import logging
import os
import shlex
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from glip_adapt.core.captions import clean_name
from glip_adapt.core.sizes import SizeHW
from glip_adapt.data.documents import Finding, SplitDocument
from glip_adapt.data.entries import (
    FLOAT32_MAX,
    box_of,
    declared_size,
    entries_of,
    image_path,
    is_annotation,
    is_area,
    is_id,
    is_image,
    root_category,
)
from glip_adapt.data.images import load_rgb, read_header
from glip_adapt.data.split import is_outside

logger = logging.getLogger(__name__)

# Defects that stop loading → the expected content.
_EXPECTED = {
    "missing annotation file": "a COCO JSON file (`glip-adapt data fetch NAME` downloads a known dataset)",
    "malformed JSON": "a JSON object with the lists images, annotations and categories",
    "malformed label file": "a whole file of the format; restore it, or remove it and label the image again",
    "malformed entry": "images with id and file_name, annotations with image_id, category_id and bbox [x, y, width, "
    "height], categories with a whole number as id, and a name",
    "empty split": "at least one image and one category",
    "missing image file": "every file_name to exist below the image folder",
    "duplicate image id": "each image id once",
    "duplicate category id": "each category id once",
    "unknown image id": "annotations of listed images only",
    "unknown category": "annotations of listed categories only",
    "NaN or infinite box": "finite box coordinates",
}
# Defects that only cause a warning: the meaning is clear, but a result changes. Each with its consequence.
_WARNED = {
    "zero or negative box size": "Training leaves such boxes out, scoring keeps them",
    "annotation without a box": "Such annotations are left out",
    "odd area": "The area of the box is used instead",
    "odd iscrowd": "Such annotations count as single objects",
    "doubled box": "Every copy counts, and a detector can find only one of them: remove the others",
    "root category without boxes": "It is left out of the classes",
    "malformed label": "Such labels are left out",
    "confidence of a label": "It is left out; predictions are no ground truth until someone has looked at them",
    "label file without an image": "It is left out",
    "missing split": "It is left out",
    "class named twice": "Both count as one class",
    "number of classes": "The names count",
    "unlisted class": "It follows the listed ones",
    "coordinates from 0 to 1": "They count as pixels, although they look like fractions of the image",
    "several annotations of one image": "The others are left out",
    "image turned in Label Studio": "Its boxes count as drawn on the image as it is stored",
}
# No defects: what is in no split, and how labels are understood. Only the check tells it.
_NOTED = {
    "image turned by its EXIF orientation": "Its boxes count as drawn on the upright image",
    "image without a label file": "It is in no split; an empty label file says that it shows none of the objects",
    "label file in no image set": "It is in no split",
}


@dataclass(frozen=True)
class Defect:
    """One kind of finding in a split.

    Attributes:
        kind: name of the defect, in words.
        count: number of occurrences.
        examples: the first five occurrences.
    """

    kind: str
    count: int
    examples: tuple[str, ...]

    @property
    def is_note(self) -> bool:
        """Whether nothing is wrong: it only tells what is in no split, or how labels are understood."""
        return self.kind in _NOTED

    @property
    def consequence(self) -> str:
        """What follows from it, in a sentence; empty if the data are used as they stand."""
        if self.kind in _EXPECTED:
            return "The dataset cannot be loaded"
        return _WARNED.get(self.kind, _NOTED.get(self.kind, ""))


def list_defects(split: SplitDocument) -> list[Defect]:
    """Return all findings about a split and its images, by kind; bad content never raises.

    Every image is decoded, which takes a while for a large split.
    """
    return _grouped(chain(_scan(split), _scan_pixels(split)))


def require_sound(split: SplitDocument, *, images: bool = True, need_sizes: bool = True) -> None:
    """Check a split before it is used, and log one warning for each kind of doubtful entry.

    Args:
        split: to check.
        images: whether every image must exist.
        need_sizes: whether the document must state image sizes if images need not exist.

    Raises:
        FileNotFoundError: if the annotation file or an image is missing.
        ValueError: at the first other defect that leaves the meaning of the split open.
    """
    doubtful = []
    warned = _WARNED.keys() | ({kind for kind, _ in split.findings} - _NOTED.keys())
    for kind, example in _scan(split, images, need_sizes):
        if kind in _EXPECTED:
            raise _defect_error(split, kind, example)
        if kind in warned:
            doubtful.append((kind, example))
    for defect in _grouped(doubtful):
        consequence = defect.consequence or "Look at it"
        logger.warning(f"{split.source}: {defect.kind} ({defect.count} in all): {defect.examples[0]}. {consequence}.")


def _grouped(findings: Iterable[Finding]) -> list[Defect]:
    """Return findings grouped by kind, in the order in which the kinds first occur."""
    found: dict[str, list[str]] = {}
    for kind, example in findings:
        found.setdefault(kind, []).append(example)
    return [Defect(kind, len(examples), tuple(examples[:5])) for kind, examples in found.items()]


def _defect_error(split: SplitDocument, kind: str, example: str) -> FileNotFoundError | ValueError:
    error = FileNotFoundError if kind in ("missing annotation file", "missing image file") else ValueError
    return error(
        f"{split.source}: {kind}: {example}. Expected {_EXPECTED[kind]}. "
        f"Run `glip-adapt data check {shlex.quote(str(split.folder or split.source))}` to list every defect."
    )


def _scan(split: SplitDocument, images: bool = True, need_sizes: bool = True) -> Iterator[Finding]:
    """Yield what the reader found, the defects of the document, and missing images if ``images``."""
    yield from split.findings
    document, image_dir = split.document, split.image_dir if images else None
    if not document and split.findings:
        return  # the file could not be read
    for key in ("images", "annotations", "categories"):
        if not isinstance(document.get(key), list):
            came = f"is a {type(document[key]).__name__}" if key in document else "is missing"
            yield "malformed JSON", f"the list {key!r} {came}"
        elif not document[key] and key != "annotations":
            yield "empty split", f"no {key}"
    categories: set[int] = set()
    sizes: dict[int | str, SizeHW | None] = {}
    yield from _scan_categories(entries_of(document, "categories"), categories)
    yield from _scan_images(entries_of(document, "images"), image_dir, sizes, need_sizes)
    yield from _scan_annotations(entries_of(document, "annotations"), categories, sizes)
    if (root := root_category(document)) is not None:
        yield "root category without boxes", f"category {root[0]} ({root[1]!r}) is no object but heads the others"


def _scan_categories(entries: list[Any], known: set[int]) -> Iterator[Finding]:
    """Yield the defects of the categories, and collect their ids in ``known``."""
    wordings: dict[str, str] = {}
    for index, entry in enumerate(entries):
        if not isinstance(entry, dict) or not is_id(entry.get("id"), int):
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
) -> Iterator[Finding]:
    """Yield the defects of the image list, and collect the declared sizes by id in ``sizes``."""
    names: set[str] = set()
    for index, entry in enumerate(entries):
        if not is_image(entry):
            yield "malformed entry", f"images[{index}] is {_short(entry)}"
            continue
        image_id, name, size_hw = entry["id"], entry["file_name"], declared_size(entry)
        if image_id in sizes:
            yield "duplicate image id", f"{image_id} ({name})"
        if name in names:
            yield "duplicate file name", name
        if image_dir is not None and not os.path.isfile(image_path(image_dir, name)):  # unlike Path, never raises
            yield "missing image file", str(image_dir / name)
        if image_dir is None and size_hw is None and need_sizes:
            yield "malformed entry", f"images[{index}] has no width and height, and no image to read them from"
        names.add(name)
        sizes[image_id] = size_hw
    if len({isinstance(image_id, str) for image_id in sizes}) > 1:
        yield "malformed entry", "image ids mix numbers and text"


def _scan_annotations(
    entries: list[Any], categories: set[int], sizes: dict[int | str, SizeHW | None]
) -> Iterator[Finding]:
    """Yield the defects of the annotations."""
    ids: set[int | str] = set()
    boxes: set[tuple[Any, ...]] = set()
    for index, entry in enumerate(entries):
        if not is_annotation(entry):
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
        if entry.get("area") is not None and not is_area(entry["area"]):
            yield "odd area", f"{what} has area {_short(entry['area'])}"
        if entry.get("iscrowd") not in (None, 0, 1):
            yield "odd iscrowd", f"{what} has iscrowd {_short(entry['iscrowd'])}"
        for kind, example in _scan_box(entry, sizes.get(image_id)):
            yield kind, f"{what} {example}"
        box = (image_id, category_id, bool(entry.get("iscrowd")), *(box_of(entry) or [index]))
        if box in boxes:
            yield "doubled box", f"{what} has the box and the class of another one in image {image_id}"
        boxes.add(box)


def _scan_box(entry: dict[str, Any], size_hw: SizeHW | None) -> Iterator[Finding]:
    """Yield the defects of the box of one annotation."""
    if any(not abs(value) <= FLOAT32_MAX for value in entry.get("bbox") or ()):
        yield "NaN or infinite box", f"has bbox {entry['bbox']}"
        return
    box = box_of(entry)
    if box is None:
        yield "annotation without a box", "has neither a bbox nor polygons"
    elif any(not abs(value) <= FLOAT32_MAX for value in box):
        yield "NaN or infinite box", "has polygons that are not finite"
    elif min(box[2:]) <= 0:
        yield "zero or negative box size", f"has bbox {box}"
    elif is_outside(box, size_hw):
        yield "box outside the image", f"has bbox {box} in image {entry['image_id']}"


def _scan_pixels(split: SplitDocument) -> Iterator[Finding]:
    """Decode all images that exist, and yield their defects."""
    for entry in entries_of(split.document, "images"):
        if not is_image(entry) or not os.path.isfile(image_path(split.image_dir, entry["file_name"])):
            continue
        path, declared = image_path(split.image_dir, entry["file_name"]), declared_size(entry)
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
        if header.applied != header.orientation or header.is_ambiguous or (header.applied != 1 and declared is None):
            done = "applied" if header.applied != 1 else "not applied: the declared size is that of the stored pixels"
            is_rule = declared is None and split.folder is not None  # of formats without sizes
            kind = "image turned by its EXIF orientation" if is_rule else "EXIF orientation"
            yield kind, f"{entry['file_name']}: {header.orientation}, {done}; look at its boxes"


def _foreign_letters(text: str) -> str:
    """Return the letters and symbols that are not ASCII after removing accents, which BERT removes as well."""
    plain = (c for c in unicodedata.normalize("NFD", text) if unicodedata.category(c) != "Mn")
    return "".join(c for c in plain if ord(c) > 127 and unicodedata.category(c)[0] in "LS")


def _short(entry: Any) -> str:
    text = repr(entry)
    return text if len(text) <= 100 else text[:97] + "..."
