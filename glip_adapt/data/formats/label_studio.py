"""Label Studio format: a list of tasks with regions in percent of the image, as its exports JSON and JSON-MIN.

- A task counts by its annotations that were not cancelled: the ground truth, else the first. Predictions do not count.
- A rectangle is turned clockwise about its top left corner; the box around the turned rectangle is read.
- The name of an image may be a URL, and uploads have eight characters before their name.
"""

from __future__ import annotations

import json
import math
import os
import re
import reprlib
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

from glip_adapt.core.sizes import SizeHW
from glip_adapt.data.documents import (
    BoxXYWH,
    Draft,
    LabelledImage,
    SplitDocument,
    copy_images,
    named_boxes,
    write_classes,
)
from glip_adapt.data.entries import declared_size, is_image
from glip_adapt.data.images import SUFFIXES, read_header
from glip_adapt.data.label_files import ImageIndex, documents_of, files_below, one_file_per_split, read_json, to_number
from glip_adapt.data.split import Split

NAME = "label_studio"
LAYOUT = "a .json export of Label Studio (JSON or JSON-MIN) and the images; train.json, val.json, test.json for splits"

FILE = "tasks.json"
LABELS = ("rectanglelabels", "polygonlabels", "labels")  # keys that hold the classes of a region
_SHAPES = ("rectangle", "polygon")  # regions whose class is in another result of the same id
_TRACES = re.compile(rb'"(rectanglelabels|polygonlabels|was_cancelled|annotation_id)"')
_UPLOAD = re.compile(r"^[0-9a-f]{8}-(?=.)")


def recognises(folder: Path) -> bool:
    """Tell whether a JSON file below a folder is a list of tasks."""
    return any(is_export(path) for path in files_below(folder, ".json"))


def read(folder: Path) -> dict[str, SplitDocument]:
    """Return the splits of a folder, told by the names of label files, else by folders of images.

    Tasks without an annotation are in none.

    Raises:
        ValueError: if a split has several files, no task has an annotation, or several images have one name.
    """
    images = ImageIndex(folder)
    drafts: dict[str, Draft] = {}
    for path, named in one_file_per_split(filter(is_export, files_below(folder, ".json")), folder).items():
        split = named or "train"
        draft = drafts.setdefault(split, Draft(folder))
        try:
            tasks = read_json(path)
        except ValueError as error:
            draft.findings.append(("malformed label file", f"{path.relative_to(folder).as_posix()}: {error}"))
            continue
        listed: set[Path] = set()
        for number, task in enumerate(tasks):
            where = f"{path.relative_to(folder).as_posix()}, task {number}"
            try:
                image = read_task(task, where, path.parent, split, images, draft)
            except _MalformedError as error:
                draft.findings.append(("malformed label", f"{where}: {error}"))
                continue
            if image is not None and image.path in listed:
                draft.findings.append(("several annotations of one image", f"{where}: the first task counts"))
            elif image is not None:
                listed.add(image.path)
                drafts.setdefault(named or images.split_of(image.path), Draft(folder)).images.append(image)
    return documents_of(drafts, images)


def write(splits: Mapping[str, Split], folder: Path) -> None:
    """Write a folder with images and ``tasks.json`` for each split, and ``classes.txt``.

    Tasks name images as local files of a storage that begins in ``folder``.
    """
    write_classes(splits, folder)
    for split_name, split in splits.items():
        tasks = []
        for record, copy in copy_images(split, folder / split_name):
            height, width = record.header.size_hw
            common = {"from_name": "label", "to_name": "image", "type": "rectanglelabels", "image_rotation": 0}
            common |= {"original_width": width, "original_height": height}
            results = [
                common | {"id": f"{number}", "value": percent_of(box, width, height) | {"rectanglelabels": [name]}}
                for number, (name, box) in enumerate(named_boxes(split, record), start=1)
            ]
            url = "/data/local-files/?d=" + quote(f"{split_name}/{copy.name}")
            tasks.append({"data": {"image": url}, "annotations": [{"result": results, "was_cancelled": False}]})
        (folder / split_name / FILE).write_text(json.dumps(tasks, ensure_ascii=False, indent=1), encoding="utf-8")


class _MalformedError(ValueError):
    """A part of a task cannot be understood; the message says why."""


def is_export(path: Path) -> bool:
    """Tell whether a file is a list of tasks, also if it is cut off."""
    try:
        with path.open("rb") as opened:
            if not opened.read(64).decode("utf-8-sig", errors="ignore").lstrip().startswith("["):
                return False
            opened.seek(0)
            data = opened.read()
    except OSError:
        return False
    try:
        return any(_is_task(task) for task in json.loads(data))
    except (ValueError, RecursionError):
        return _TRACES.search(data) is not None


def _is_task(task: Any) -> bool:
    if not isinstance(task, dict):
        return False
    if isinstance(task.get("data"), dict):
        return bool(task.keys() & {"annotations", "completions", "predictions"})
    return "annotation_id" in task or any(LABELS[0] in region or LABELS[1] in region for region in flat_regions(task))


def flat_regions(task: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the regions of a task of JSON-MIN, which lie under the names of tags."""
    lists = (value for value in task.values() if isinstance(value, list))
    return [region for regions in lists for region in regions if isinstance(region, dict)]


def read_task(task: Any, where: str, near: Path, split: str, images: ImageIndex, draft: Draft) -> LabelledImage | None:
    """Return the image of a task, or None if it has no annotation; note what is left out."""
    if not isinstance(task, dict):
        raise _MalformedError(f"{reprlib.repr(task)} is no task")
    regions = regions_of(task, where, draft)
    if regions is None:
        return None
    path = find_image(task["data"] if isinstance(task.get("data"), dict) else task, near, split, images)
    stated = next((size for region in regions if (size := _size(region)) is not None), None)
    try:
        height, width = stated or read_header(path).size_hw
    except (FileNotFoundError, ValueError):  # the check lists missing and unreadable images
        regions = []
    boxes: list[tuple[str, BoxXYWH]] = []
    labelled = {region.get("id") for region in regions if "labels" in region}
    for number, region in enumerate(regions):
        if region.get("type") in _SHAPES and region.get("id") in labelled:
            continue
        try:
            names, points = _names(region), _points(region, width, height)
        except ValueError as error:
            draft.findings.append(("malformed label", f"{where}, region {number}: {error}"))
            continue
        if names and not points:
            draft.findings.append(("annotation without a box", f"{where}, region {number}: {names[0]!r}"))
        elif names:
            (left, right), (top, bottom) = ((min(values), max(values)) for values in zip(*points, strict=True))
            boxes += [(name, (left, top, right - left, bottom - top)) for name in names]
            if region.get("image_rotation") not in (None, 0):
                draft.findings.append(("image turned in Label Studio", f"{where}, region {number}"))
    return LabelledImage(path, tuple(boxes), stated)


def regions_of(task: Mapping[str, Any], where: str, draft: Draft) -> list[dict[str, Any]] | None:
    """Return the regions of the annotation that counts, with geometry and image size side by side; None without one."""
    if not isinstance(task.get("data"), dict):
        return None if task.get("annotation_id", 0) is None else flat_regions(task)
    stated = task.get("annotations", task.get("completions"))
    annotations = [entry for entry in stated if isinstance(entry, dict)] if isinstance(stated, list) else []
    annotations = [entry for entry in annotations if not (entry.get("was_cancelled") or entry.get("skipped"))]
    if not annotations:
        return None
    chosen = next((entry for entry in annotations if entry.get("ground_truth")), annotations[0])
    if len(annotations) > 1 and not chosen.get("ground_truth"):
        draft.findings.append(("several annotations of one image", f"{where}: the first of {len(annotations)} counts"))
    results = chosen.get("result")
    if not isinstance(results, list) or not all(isinstance(result, dict) for result in results):
        raise _MalformedError(f"the result is {reprlib.repr(results)}, no list of regions")
    return [result | value if isinstance(value := result.get("value"), dict) else result for result in results]


def _names(region: Mapping[str, Any]) -> list[str]:
    """Return the classes of a region; none if it is no region of the image, such as a choice or a text.

    Raises:
        ValueError: if it is a region without a class.
    """
    key = next((key for key in (*LABELS, *region) if key in region and key.endswith("labels")), None)
    if key is None and region.get("type") not in _SHAPES:
        return []
    names = region[key] if key is not None else None
    if not isinstance(names, list) or not names or not all(isinstance(name, str) and name.strip() for name in names):
        raise ValueError(f"the labels are {reprlib.repr(names)}")
    return [name.strip() for name in names]


def _points(region: Mapping[str, Any], width: int, height: int) -> list[tuple[float, float]]:
    """Return the corners of a rectangle or polygon in pixels; none if a region is neither.

    Raises:
        ValueError: if a coordinate is no number.
    """
    points = region.get("points")
    if isinstance(points, list) and len(points) >= 3 and all(isinstance(p, list) and len(p) == 2 for p in points):
        return [(to_number(x) / 100 * width, to_number(y) / 100 * height) for x, y in points]
    if not {"x", "y", "width", "height"} <= region.keys():
        return []
    x, y, w, h = (to_number(region[key]) / 100 for key in ("x", "y", "width", "height"))
    angle = math.radians(to_number(region.get("rotation") or 0))
    cos, sin = math.cos(angle), math.sin(angle)
    corners = ((0.0, 0.0), (w * width, 0.0), (0.0, h * height), (w * width, h * height))
    return [(x * width + cos * right - sin * down, y * height + sin * right + cos * down) for right, down in corners]


def _size(region: Mapping[str, Any]) -> SizeHW | None:
    entry = {"id": 0, "file_name": "-", "height": region.get("original_height"), "width": region.get("original_width")}
    return declared_size(entry) if is_image(entry) else None


def percent_of(box: BoxXYWH, width: int, height: int) -> dict[str, Any]:
    """Return a box in percent of an image of these sides."""
    x, y, w, h = box
    sides = {"x": x / width, "y": y / height, "width": w / width, "height": h / height}
    return {key: 100 * value for key, value in sides.items()} | {"rotation": 0}


def find_image(data: Mapping[str, Any], near: Path, split: str, images: ImageIndex) -> Path:
    """Return the image that a task names, or where it should be."""
    texts = {key: value for key, value in data.items() if isinstance(value, str)}
    if "image" in texts:
        stated = [texts["image"]]
    else:
        stated = [text for text in texts.values() if os.path.splitext(_file_names(text)[-1])[1].lower() in SUFFIXES]
    if len(stated) != 1 or not (names := _file_names(stated[0]))[-1]:
        raise _MalformedError(f"expected the name of one image, got {reprlib.repr(stated)}")
    found = (images.find(name, near, split) for name in names)
    return next((path for path in found if os.path.isfile(path)), near / names[-1])


def _file_names(stated: str) -> list[str]:
    """Return what a name or URL may mean, as paths, and then as bare file names without the prefix of uploads."""
    try:
        parts = urlsplit(stated)
        local = parse_qs(parts.query).get("d") if "local-files" in parts.path else None
        names = local or [stated, unquote(parts.path)]
    except ValueError:
        names = [stated]
    bare = [PurePosixPath(name.replace("\\", "/")).name for name in names]
    return [*names, *bare, *(_UPLOAD.sub("", name, count=1) for name in bare)]
