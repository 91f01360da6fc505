"""YOLO format: one text file per image, with class numbers and boxes or polygons in fractions of the image.

As Ultralytics, Roboflow, LabelImg, Label Studio, CVAT and darknet write it. ``data.yaml`` names splits and classes;
without it, folders or lists such as ``train.txt`` name the splits, and ``classes.txt`` or ``obj.names`` the classes.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import yaml

from glip_adapt.data.documents import (
    BoxXYWH,
    Draft,
    Finding,
    LabelledImage,
    SplitDocument,
    build_documents,
    copy_images,
    image_files,
    named_boxes,
)
from glip_adapt.data.images import read_header
from glip_adapt.data.split import Split
from glip_adapt.data.yolo_layouts import (
    SETTINGS_FILES,
    class_names,
    images_of_splits,
    read_settings,
    read_text,
    settings_files,
)

logger = logging.getLogger(__name__)

NAME = "yolo"
LAYOUT = "data.yaml or classes.txt, and a .txt file with class numbers and fractions for each image"

_MOST_TRIED = 50  # label files that are looked into before a folder is taken for another format
_TOLERANCE = 1e-3  # of fractions, which tools round to as few as three decimals


def recognises(folder: Path) -> bool:
    """Tell whether a folder holds ``data.yaml``, files of darknet, or label files of numbers beside images."""
    if settings_files(folder) or (folder / "obj.names").is_file() or (folder / "obj_train_data").is_dir():
        return True
    labels = (file for image in image_files(folder) if (file := label_file(image)) is not None)
    return any(_has_numbers(file) for _, file in zip(range(_MOST_TRIED), labels, strict=False))


def read(folder: Path) -> dict[str, SplitDocument]:
    """Return the splits of a folder; images without a label file are in none.

    Raises:
        ValueError: if the class names are missing, ``data.yaml`` cannot be read, or no image has a label file.
    """
    documents = read_begun(folder)
    if not any(source.document["images"] for source in documents.values()):
        raise _without_labels(folder, [finding for source in documents.values() for finding in source.findings])
    return documents


def read_begun(folder: Path) -> dict[str, SplitDocument]:
    """Return the splits as ``read`` does, but while no image has a label file yet, one without images.

    Raises:
        ValueError: if the class names are missing, ``data.yaml`` cannot be read, or there is no image.
    """
    files = settings_files(folder)
    if len(files) > 1:
        names = ", ".join(file.name for file in files)
        raise ValueError(f"{folder} has several files that name classes and splits: {names}. Keep one of them.")
    settings = read_settings(files[0]) if files else {}
    classes = class_names(folder, files[0] if files else None, settings)
    images, findings = images_of_splits(folder, settings)
    findings += [("class named twice", repr(name)) for name in dict.fromkeys(classes) if classes.count(name) > 1]
    if (stated := settings.get("nc")) not in (None, str(len(classes))):
        findings.append(("number of classes", f"nc is {stated}, but {len(classes)} classes have names"))
    drafts = {name: Draft(files[0] if files else folder) for name in images}
    for name, paths in images.items():
        for path in paths:
            _read_image(path, folder, classes, "kpt_shape" in settings, drafts[name])
    findings += _unused_labels([path for paths in images.values() for path in paths], folder)
    if not any(images.values()):
        raise _without_labels(folder, findings)
    labelled = {name: draft for name, draft in drafts.items() if draft.images}
    kept = labelled or {"train": Draft(files[0] if files else folder)}
    # What concerns no split that can be loaded is told with the first one.
    next(iter(kept.values())).findings += findings + [
        finding for name, draft in drafts.items() if name not in labelled for finding in draft.findings
    ]
    return build_documents(kept, folder, classes)


def _without_labels(folder: Path, findings: Sequence[Finding]) -> ValueError:
    missing = "".join(f"; {example}" for kind, example in findings if kind == "missing split")
    return ValueError(
        f"{folder}: no image has a label file{missing}. Expected labels/NAME.txt for images/NAME.jpg, or NAME.txt "
        "beside NAME.jpg."
    )


def write(splits: Mapping[str, Split], folder: Path) -> None:
    """Write ``data.yaml``, and images and labels as ``images/SPLIT`` and ``labels/SPLIT``.

    Boxes that leave the image are clipped, since no fraction may exceed 1.
    """
    classes = next(iter(splits.values())).classes
    number_of = {name: number for number, name in enumerate(classes)}
    changed = 0
    for split_name, split in splits.items():
        labels = folder / "labels" / split_name
        labels.mkdir(parents=True)
        for record, copy in copy_images(split, folder / "images" / split_name):
            lines = []
            for name, box in named_boxes(split, record):
                fractions = fractions_of(box, *record.header.size_hw)
                changed += fractions is None or not _is_inside(box, *record.header.size_hw)
                if fractions is not None:
                    lines.append(" ".join([str(number_of[name]), *(f"{value:.10f}" for value in fractions)]) + "\n")
            (labels / f"{copy.stem}.txt").write_text("".join(lines), encoding="utf-8")
    if changed:
        logger.warning(f"{changed} boxes leave their images or have negative sides: they are clipped, or left out.")
    content = {name: f"images/{name}" for name in splits} | {"names": dict(enumerate(classes))}
    text = yaml.safe_dump(content, allow_unicode=True, sort_keys=False, width=10**6)
    (folder / SETTINGS_FILES[0]).write_text(text, encoding="utf-8")


def _read_image(path: Path, folder: Path, classes: Sequence[str], has_keypoints: bool, draft: Draft) -> None:
    """Add one image to a draft, unless no label file speaks of it."""
    file = label_file(path)
    if file is None:
        if path.is_file():
            draft.findings.append(("image without a label file", os.path.relpath(path, folder)))
        else:
            draft.images.append(LabelledImage(path))  # the check says that it is missing
        return
    fractions = []
    for number, line in enumerate(read_text(file).split("\n"), start=1):
        where = f"{os.path.relpath(file, folder)}, line {number}"
        if not line.strip():
            continue
        try:
            label, box, with_confidence = parse_line(line, has_keypoints)
        except ValueError as error:
            draft.findings.append(("malformed label", f"{where}: {str(error)[:200]}"))
            continue
        if label >= len(classes):
            draft.findings.append(("unknown category", f"{where}: class {label}, but there are {len(classes)} names"))
            continue
        if with_confidence:
            draft.findings.append(("confidence of a label", where))
        fractions.append((classes[label], box))
    boxes: list[tuple[str, BoxXYWH]] = []
    if fractions:
        try:
            height, width = read_header(path).size_hw
            boxes = [(name, (x * width, y * height, w * width, h * height)) for name, (x, y, w, h) in fractions]
        except (FileNotFoundError, ValueError):  # the check lists missing and unreadable images
            pass
    draft.images.append(LabelledImage(path, tuple(boxes)))


def label_file(image: Path) -> Path | None:
    """Return the existing label file of an image: below ``labels`` for the last folder ``images``, or beside it."""
    beside = os.path.splitext(image)[0] + ".txt"
    head, found, tail = beside.rpartition(f"{os.sep}images{os.sep}")
    apart = [f"{head}{os.sep}labels{os.sep}{tail}"] if found else []
    return next((Path(file) for file in (*apart, beside) if os.path.isfile(file)), None)


def _unused_labels(images: Sequence[Path], folder: Path) -> Iterator[tuple[str, str]]:
    """Yield label files without an image, in the folders of those that have one."""
    used = {file for image in (*images, *image_files(folder)) if (file := label_file(image)) is not None}
    for place in sorted({file.parent for file in used}):
        for file in sorted(place.glob("*.txt")):
            if file not in used and _has_numbers(file):
                yield "label file without an image", os.path.relpath(file, folder)


def _has_numbers(file: Path) -> bool:
    """Tell whether a file starts like labels."""
    try:
        parse_line(read_text(file).strip().partition("\n")[0], has_keypoints=False)
    except (OSError, ValueError):
        return False
    return True


def parse_line(line: str, has_keypoints: bool) -> tuple[int, BoxXYWH, bool]:
    """Return class number, left, top, width and height in fractions, and whether the line has a confidence.

    Raises:
        ValueError: if the line is no label; the message says why.
    """
    label, *values = map(float, line.split())
    if has_keypoints:
        values = values[:4]
    if not (label.is_integer() and label >= 0):
        raise ValueError(f"{label} is no class number")
    if len(values) in (4, 5):
        x, y, w, h = values[:4]
        box = (x - w / 2, y - h / 2, w, h)
    elif len(values) >= 6 and len(values) % 2 == 0:
        xs, ys = values[::2], values[1::2]
        box = (min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys))
    else:
        raise ValueError(f"{len(values)} numbers follow the class; expected 4, or x and y of at least 3 points")
    if any(not -_TOLERANCE <= value <= 1 + _TOLERANCE for value in values):
        raise ValueError("the numbers are no fractions of the image, from 0 to 1")
    return int(label), box, len(values) == 5


def _is_inside(box: BoxXYWH, height: int, width: int) -> bool:
    x, y, w, h = box
    return min(x, y, width - x - w, height - y - h) >= -0.01


def fractions_of(box: BoxXYWH, height: int, width: int) -> tuple[float, float, float, float] | None:
    """Return centre, width and height of a box as fractions of the image; None if nothing of it is inside."""
    x, y, w, h = box
    left, right = (min(max(edge, 0), width) for edge in (x, x + w))
    top, bottom = (min(max(edge, 0), height) for edge in (y, y + h))
    if right < left or bottom < top or (min(right - left, bottom - top) == 0 and min(w, h) > 0):
        return None
    return (left + right) / 2 / width, (top + bottom) / 2 / height, (right - left) / width, (bottom - top) / height
