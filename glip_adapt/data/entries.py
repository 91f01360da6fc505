"""Entries of COCO files: image path and size, box, area, root category, and type checks.

Many tools write such files. A value that an entry leaves out is derived from the rest of the entry, if that is clear.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from glip_adapt.core.sizes import SizeHW

FLOAT32_MAX = float(np.finfo(np.float32).max)
_NO_SUPERCATEGORY = (None, "", "none")
_BACKGROUND_NAMES = ("__background__", "background")


def image_path(image_dir: Path, file_name: str) -> Path:
    """Return the path of an image; a name from Windows may have backslashes between folders."""
    path = image_dir / file_name
    if "\\" in file_name and not os.path.isfile(path):
        return image_dir / file_name.replace("\\", "/")
    return path


def declared_size(entry: Mapping[str, Any]) -> SizeHW | None:
    """Return the (height, width) in pixels of an image entry; None if it states none."""
    return None if entry.get("height") is None else (int(entry["height"]), int(entry["width"]))


def box_of(entry: Mapping[str, Any]) -> list[float] | None:
    """Return the [x, y, width, height] of an annotation, or of its polygons if it has no box; None without both."""
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
    """Return the area of an annotation in square pixels; if it states none, the area of its box."""
    return float(entry["area"]) if is_area(entry.get("area")) else box[2] * box[3]


def score_of(entry: Mapping[str, Any]) -> float:
    """Return how sure a detector was of a box, in (0, 1]; 1 for one that states no such score, so drawn by hand."""
    score: Any = entry.get("score")
    return float(score) if _is_number(score) and 0 < score <= 1 else 1.0


def root_category(document: Mapping[str, Any]) -> tuple[int, str] | None:
    """Return id and name of the root category, such as Roboflow exports: a heading of the others without boxes.

    It has no supercategory and is the supercategory of all others, or it has id 0 and is called background. None if
    there is no such category.
    """
    categories = [entry for entry in entries_of(document, "categories") if is_category(entry)]
    heads = [entry for entry in categories if _heads(entry, [other for other in categories if other is not entry])]
    if not heads:
        return None
    used = {entry["category_id"] for entry in entries_of(document, "annotations") if is_annotation(entry)}
    return next(((entry["id"], entry["name"]) for entry in heads if entry["id"] not in used), None)


def _heads(entry: Mapping[str, Any], others: Sequence[Mapping[str, Any]]) -> bool:
    """Tell whether a category is the supercategory of all others, or the background."""
    if entry["id"] == 0 and entry["name"] in _BACKGROUND_NAMES:
        return bool(others)
    above = [other.get("supercategory") for other in others]
    is_above = bool(others) and all(name == entry["name"] for name in above)
    return is_above and entry.get("supercategory") in _NO_SUPERCATEGORY


def entries_of(document: Mapping[str, Any], key: str) -> list[Any]:
    """Return one of the lists of a document; an empty list if the value is no list."""
    entries = document.get(key)
    return entries if isinstance(entries, list) else []


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def is_id(value: Any, *types: type) -> bool:
    """Tell whether a value has one of these types; true and false do not count as numbers."""
    return isinstance(value, types) and not isinstance(value, bool)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def is_area(value: Any) -> bool:
    """Tell whether a value is a number of square pixels."""
    return _is_number(value) and 0 <= value <= FLOAT32_MAX


def is_image(entry: Any) -> bool:
    """Tell whether an image entry has an id, a file name, and either no size or a valid one."""
    if not isinstance(entry, dict) or not is_id(entry.get("id"), int, str) or not _is_text(entry.get("file_name")):
        return False
    sides: list[Any] = [entry.get("height"), entry.get("width")]
    return sides == [None, None] or all(_is_number(side) and 1 <= side < 1e9 and side % 1 == 0 for side in sides)


def is_category(entry: Any) -> bool:
    """Tell whether a category entry has an id and a name."""
    return isinstance(entry, dict) and is_id(entry.get("id"), int) and _is_text(entry.get("name"))


def is_annotation(entry: Any) -> bool:
    """Tell whether the ids and the box of an annotation have the right types; the scan of ``check`` judges values."""
    if not isinstance(entry, dict) or not is_id(entry.get("image_id"), int, str):
        return False
    bbox = entry.get("bbox")
    return (
        is_id(entry.get("category_id"), int)
        and (entry.get("id") is None or is_id(entry["id"], int, str))
        and (bbox in (None, []) or (isinstance(bbox, list) and len(bbox) == 4 and all(map(_is_number, bbox))))
    )
