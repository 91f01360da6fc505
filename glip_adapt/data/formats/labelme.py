"""LabelMe format: one JSON file per image, with rectangles, polygons, circles and masks.

As LabelMe and X-AnyLabeling write it. Kept from LabelMe (labelme/_label_file.py, examples/instance_segmentation):

- The corners of a mask are its first and last pixels; all other coordinates are edges.
- Polygons, circles and masks of one label and ``group_id`` are parts of one object; a rectangle is always an object.
- Shapes called ``__ignore__`` or ``_background_`` are no objects.
- Images are labelled upright, and the size in the file is that of the upright image.
"""

from __future__ import annotations

import json
import math
import os
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from glip_adapt.core.sizes import SizeHW
from glip_adapt.data.documents import (
    CLASSES_FILE,
    BoxXYWH,
    Draft,
    LabelledImage,
    SplitDocument,
    copy_images,
    named_boxes,
    write_classes,
)
from glip_adapt.data.entries import declared_size, image_path, is_image
from glip_adapt.data.label_files import (
    NO_CLASSES,
    ImageIndex,
    documents_of,
    files_below,
    named_split,
    read_json,
    split_of,
    to_number,
)
from glip_adapt.data.split import Split

NAME = "labelme"
LAYOUT = "a .json file with shapes for each image; folders train, val and test, classes.txt or labels.txt if wanted"

_Edges = tuple[float, float, float, float]  # left, top, right, bottom in pixels
VERSION = "5.5.0"  # of LabelMe, whose form of files is written
_LEAST_POINTS = {
    **{"rectangle": 2, "circle": 2, "mask": 2, "polygon": 3},
    **{"oriented_rectangle": 3, "rotation": 3, "quadrilateral": 3},  # the last two are of X-AnyLabeling
}


def recognises(folder: Path) -> bool:
    """Tell whether a JSON file below a folder is one of LabelMe."""
    return any(_is_labelme(path) for path in files_below(folder, ".json"))


def read(folder: Path) -> dict[str, SplitDocument]:
    """Return the splits of a folder, told by the folders of label files, else of images.

    JSON files without shapes are passed over.

    Raises:
        ValueError: if no file speaks of an image, or several images have the name that a file states.
    """
    images = ImageIndex(folder)
    drafts: dict[str, Draft] = {}
    for path in files_below(folder, ".json"):
        where, split = path.relative_to(folder).as_posix(), split_of(path, folder)
        try:
            content = read_json(path)
            if not has_shapes(content):
                continue
            if not isinstance(content["shapes"], list):
                raise ValueError(f"shapes is {reprlib.repr(content['shapes'])}, no list")
        except ValueError as error:
            drafts.setdefault(split, Draft(folder)).findings.append(("malformed label file", f"{where}: {error}"))
            continue
        image = find_image(content, path, split, images)
        draft = drafts.setdefault(named_split(path, folder) or images.split_of(image), Draft(folder))
        draft.images.append(LabelledImage(image, _boxes(content["shapes"], where, draft), _size(content)))
    return documents_of(drafts, images, (CLASSES_FILE, "labels.txt"))


def write(splits: Mapping[str, Split], folder: Path) -> None:
    """Write a folder for each split, with a JSON file beside each image, and ``classes.txt``."""
    write_classes(splits, folder)
    for split_name, split in splits.items():
        for record, copy in copy_images(split, folder / split_name):
            shapes = [
                {"label": name, "points": [[x, y], [x + w, y + h]], "shape_type": "rectangle", "flags": {}}
                for name, (x, y, w, h) in named_boxes(split, record)
            ]
            height, width = record.header.size_hw
            content: dict[str, Any] = {"version": VERSION, "flags": {}, "shapes": shapes, "imagePath": copy.name}
            content |= {"imageData": None, "imageHeight": height, "imageWidth": width}
            copy.with_suffix(".json").write_text(json.dumps(content, ensure_ascii=False, indent=2), encoding="utf-8")


def _is_labelme(path: Path) -> bool:
    """Tell whether a file is one of LabelMe, also if it is cut off."""
    try:
        if b'"shapes"' not in (data := path.read_bytes()):
            return False
        return has_shapes(json.loads(data))
    except OSError:
        return False
    except (ValueError, RecursionError):
        return True


def has_shapes(content: Any) -> bool:
    """Tell whether the content of a JSON file is that of LabelMe."""
    return isinstance(content, dict) and "shapes" in content and bool(content.keys() & {"imagePath", "version"})


def find_image(content: Mapping[str, Any], path: Path, split: str, images: ImageIndex) -> Path:
    """Return the image of a label file: the one that it names; or the one beside it, if both have been renamed."""
    name = content.get("imagePath")
    is_there = isinstance(name, str) and os.path.isfile(image_path(path.parent, name))
    beside = None if is_there else images.beside(path)
    return beside or images.find(name if isinstance(name, str) else path.stem, path.parent, split)


def _size(content: Mapping[str, Any]) -> SizeHW | None:
    entry = {"id": 0, "file_name": "-", "height": content.get("imageHeight"), "width": content.get("imageWidth")}
    return declared_size(entry) if is_image(entry) else None


def _boxes(shapes: list[Any], where: str, draft: Draft) -> tuple[tuple[str, BoxXYWH], ...]:
    """Return the objects of one image, and note the shapes that are none."""
    return tuple((label, box) for label, box, _ in objects_of(shapes, where, draft))


def objects_of(shapes: list[Any], where: str, draft: Draft) -> list[tuple[str, BoxXYWH, list[int]]]:
    """Return class name, box and positions of the shapes of each object, and note the shapes that are none."""
    found: dict[Any, tuple[str, _Edges]] = {}
    parts: dict[Any, list[int]] = {}
    for number, shape in enumerate(shapes):
        try:
            label, kind, edges = _parse(shape)
        except ValueError as error:
            draft.findings.append(("malformed label", f"{where}, shapes[{number}]: {error}"))
            continue
        if edges is None:
            draft.findings.append(("annotation without a box", f"{where}, shapes[{number}]: a {kind} called {label!r}"))
            continue
        if label in NO_CLASSES:
            draft.findings.append(("region to ignore", f"{where}, shapes[{number}]: {label}"))
            continue
        group = shape.get("group_id")
        is_part = kind != "rectangle" and isinstance(group, int | str)
        key = (label, group) if is_part else number
        found[key] = label, _joined(edges, found[key][1]) if key in found else edges
        parts.setdefault(key, []).append(number)
    return [(label, (x1, y1, x2 - x1, y2 - y1), parts[key]) for key, (label, (x1, y1, x2, y2)) in found.items()]


def _parse(shape: Any) -> tuple[str, str, _Edges | None]:
    """Return label, kind and edges of a shape; no edges if it is a point, a line or of an unknown kind.

    Raises:
        ValueError: if the shape is malformed; the message says why.
    """
    if not isinstance(shape, dict):
        raise ValueError(f"{reprlib.repr(shape)} is no object")
    label, kind, points = shape.get("label"), shape.get("shape_type") or "polygon", shape.get("points")
    if not isinstance(label, str) or not label.strip():
        raise ValueError(f"the label is {reprlib.repr(label)}")
    if not isinstance(points, list) or not all(isinstance(point, list) and len(point) == 2 for point in points):
        raise ValueError(f"the points are {reprlib.repr(points)}, no list of [x, y]")
    xs, ys = [to_number(x) for x, _ in points], [to_number(y) for _, y in points]
    if not isinstance(kind, str) or len(points) < _LEAST_POINTS.get(kind, math.inf):
        return label.strip(), f"{kind} of {len(points)} points", None
    if kind == "circle":
        radius = math.hypot(xs[1] - xs[0], ys[1] - ys[0])
        return label.strip(), kind, (xs[0] - radius, ys[0] - radius, xs[0] + radius, ys[0] + radius)
    last = 1 if kind == "mask" else 0
    return label.strip(), kind, (min(xs), min(ys), max(xs) + last, max(ys) + last)


def _joined(one: _Edges, other: _Edges) -> _Edges:
    """Return the edges of the smallest box around two."""
    (left, top, right, bottom), (left2, top2, right2, bottom2) = one, other
    return min(left, left2), min(top, top2), max(right, right2), max(bottom, bottom2)
