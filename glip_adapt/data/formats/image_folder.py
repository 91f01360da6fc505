"""ImageFolder format of Hugging Face: ``metadata.jsonl`` with one line per image, and its objects in a column."""

from __future__ import annotations

import json
import re
import reprlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from glip_adapt.data.documents import (
    CLASSES_FILE,
    BoxXYWH,
    Draft,
    LabelledImage,
    SplitDocument,
    copy_images,
    named_boxes,
    read_classes,
    write_classes,
)
from glip_adapt.data.label_files import ImageIndex, documents_of, files_below, named_split, read_text, to_number
from glip_adapt.data.split import Split

NAME = "image_folder"
LAYOUT = (
    f'metadata.jsonl beside the images, with lines {{"file_name": ..., "objects": {{"bbox": [[x, y, width, height]], '
    f'"categories": [...]}}}}, in folders train, validation and test; {CLASSES_FILE} if categories are numbers'
)

_Objects = list[tuple[Any, Any]]  # category and box of each object, as they stand in the file
FILE = "metadata.jsonl"
CATEGORIES = ("categories", "category", "labels", "label")  # names of the column, the likeliest first
_TRACES = (re.compile(rb'"file_name"\s*:'), re.compile(rb'"objects"\s*:'))
_START_BYTES = 2**20


def recognises(folder: Path) -> bool:
    """Tell whether a ``metadata.jsonl`` below a folder has a column of objects."""
    return any(map(_has_objects, metadata_files(folder)))


def read(folder: Path) -> dict[str, SplitDocument]:
    """Return the splits of a folder, told by folders of ``metadata.jsonl``, else of images; boxes are in pixels.

    Images whose line has no objects, not even an empty list, are in none.

    Raises:
        ValueError: if categories are numbers and ``classes.txt`` is missing, if no line has objects, or several images
            have the name that a line states.
    """
    images = ImageIndex(folder)
    lists = folder / CLASSES_FILE
    classes = read_classes(lists) if lists.is_file() else None
    drafts: dict[str, Draft] = {}
    for path in metadata_files(folder):
        split, where = named_split(path, folder), path.relative_to(folder).as_posix()
        draft = drafts.setdefault(split or "train", Draft(folder))
        try:
            lines = read_text(path).split("\n")
        except ValueError as error:
            draft.findings.append(("malformed label file", f"{where}: {error}"))
            continue
        for number, line in enumerate(lines, start=1):
            try:
                name, objects = parse_line(line) if line.strip() else ("", None)
            except (ValueError, RecursionError) as error:
                draft.findings.append(("malformed label", f"{where}, line {number}: {error}"))
                continue
            if objects is None:
                continue
            image = images.find(name, path.parent, split or "train")
            target = drafts.setdefault(split or images.split_of(image), Draft(folder))
            boxes = boxes_of(objects, classes, f"{where}, line {number}", folder, target)
            target.images.append(LabelledImage(image, boxes))
    return documents_of(drafts, images)


def write(splits: Mapping[str, Split], folder: Path) -> None:
    """Write a folder with images and ``metadata.jsonl`` for each split, and ``classes.txt``."""
    write_classes(splits, folder)
    for split_name, split in splits.items():
        lines = []
        for record, copy in copy_images(split, folder / split_name):
            named = named_boxes(split, record)
            objects = {"bbox": [box for _, box in named], "categories": [name for name, _ in named]}
            lines.append(json.dumps({"file_name": copy.name, "objects": objects}, ensure_ascii=False) + "\n")
        (folder / split_name / FILE).write_text("".join(lines), encoding="utf-8")


def metadata_files(folder: Path) -> list[Path]:
    """Return the files ``metadata.jsonl`` below a folder."""
    return [path for path in files_below(folder, FILE) if path.name == FILE]


def _has_objects(path: Path) -> bool:
    try:
        with path.open("rb") as opened:
            start = opened.read(_START_BYTES)
    except OSError:
        return False
    return all(trace.search(start) for trace in _TRACES)


def parse_line(line: str) -> tuple[str, _Objects | None]:
    """Return the file name of a line, and its objects; None if it has no column of objects.

    Raises:
        ValueError: if the line is malformed; the message says why.
    """
    row = json.loads(line)
    if not isinstance(row, dict) or not isinstance(row.get("file_name"), str) or not row["file_name"].strip():
        raise ValueError(f"{reprlib.repr(row)} has no file_name")
    objects = row.get("objects")
    if objects is None:
        return row["file_name"], None
    if isinstance(objects, list) and all(isinstance(entry, dict) for entry in objects):
        return row["file_name"], [(_category(entry), entry.get("bbox")) for entry in objects]
    if isinstance(objects, dict):
        categories, boxes = _category(objects), objects.get("bbox")
        if isinstance(categories, list) and isinstance(boxes, list) and len(categories) == len(boxes):
            return row["file_name"], list(zip(categories, boxes, strict=True))
    raise ValueError(f"expected objects with bbox and categories of one length, got {reprlib.repr(objects)}")


def _category(entry: Mapping[str, Any]) -> Any:
    return next((entry[key] for key in CATEGORIES if key in entry), None)


def boxes_of(
    objects: _Objects, classes: Sequence[str] | None, where: str, folder: Path, draft: Draft
) -> tuple[tuple[str, BoxXYWH], ...]:
    """Return class name and box of each object, and note those that are damaged.

    Raises:
        ValueError: if a category is a number, and there are no names.
    """
    boxes: list[tuple[str, BoxXYWH]] = []
    for number, (category, box) in enumerate(objects):
        name = category
        if isinstance(category, int) and not isinstance(category, bool):
            if classes is None:
                raise ValueError(
                    f"{folder / where}: category {category} is a number. Write the class names into "
                    f"{folder / CLASSES_FILE}, one a line, that of number 0 first."
                )
            if not 0 <= category < len(classes):
                example = f"{where}, object {number}: category {category}, but there are {len(classes)} names"
                draft.findings.append(("unknown category", example))
                continue
            name = classes[category]
        try:
            if not isinstance(name, str) or not name.strip():
                raise ValueError(f"the category is {reprlib.repr(name)}")
            if not isinstance(box, list) or len(box) != 4:
                raise ValueError(f"the bbox is {reprlib.repr(box)}, not [x, y, width, height]")
            x, y, w, h = map(to_number, box)
        except ValueError as error:
            draft.findings.append(("malformed label", f"{where}, object {number}: {error}"))
            continue
        boxes.append((name.strip(), (x, y, w, h)))
    return tuple(boxes)
