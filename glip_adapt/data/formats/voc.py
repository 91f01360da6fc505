"""Pascal VOC format: one XML file per image, with corners in pixels that count from 1 and belong to the box.

In the folders of the challenge (``Annotations``, ``JPEGImages``, ``ImageSets/Main``), or beside the images, as LabelImg
writes it and Roboflow with one folder per split.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element, ElementTree, ParseError, SubElement, indent

from defusedxml import ElementTree as Defused

from glip_adapt.core.structures import SizeHW
from glip_adapt.data.documents import (
    CLASSES_FILE,
    SPLIT_ALIASES,
    BoxXYWH,
    Draft,
    Finding,
    LabelledImage,
    SplitDocument,
    build_documents,
    copy_images,
    named_boxes,
    read_classes,
    write_classes,
)
from glip_adapt.data.label_files import ImageIndex, files_below, split_of
from glip_adapt.data.split import Split

NAME = "voc"
LAYOUT = "an .xml file of Pascal VOC for each image, in Annotations or beside it"

_LABELS, _IMAGES, _SETS = "Annotations", "JPEGImages", "ImageSets/Main"
_MOST_BYTES = 2**24
_START_BYTES = 4096
_START = re.compile(rb"<annotation[\s>]")
_CORNERS = ("xmin", "ymin", "xmax", "ymax")


def recognises(folder: Path) -> bool:
    """Tell whether a folder has XML files in ``Annotations``, or XML files that start like those of Pascal VOC."""
    return any(
        any(files_below(base / _LABELS, ".xml"))
        if _has_labels(base)
        else any(map(_is_label, files_below(base, ".xml")))
        for base in _bases(folder)
    )


def read(folder: Path) -> dict[str, SplitDocument]:
    """Return the splits of a folder; files that no image set names, and images without a file, are in none.

    Raises:
        ValueError: if the folder holds several datasets, or no file speaks of an image.
    """
    base, *others = _bases(folder)
    if others:
        raise ValueError(f"{folder} holds several datasets, in {base} and {others[0]}. Give the folder of one.")
    index = ImageIndex(base)
    stems = {path.stem for path in index.paths}
    below = base / _LABELS if _has_labels(base) else base
    files = [file for file in files_below(below, ".xml") if _has_labels(base) or file.stem in stems or _is_label(file)]
    listed, findings = _listed(
        base, {file.relative_to(below).with_suffix("").as_posix(): file for file in files}, index
    )
    drafts = {name: Draft(folder) for name in listed}
    for name, paths in listed.items():
        for path in paths:
            if path.suffix.lower() != ".xml":
                drafts[name].images.append(LabelledImage(path))  # the check says that it is missing
            else:
                near = (base / _IMAGES if _has_labels(base) else base) / path.relative_to(below).parent
                _read_file(path, near, index, name, drafts[name])
    labelled = {name: draft for name, draft in drafts.items() if draft.images or draft.findings}
    if not labelled:
        raise ValueError(f"{folder}: no .xml file speaks of an image. Label some, or give another folder.")
    used = {image.path for draft in drafts.values() for image in draft.images}
    known = {file.stem for file in files}
    without = [path for path in index.paths if path not in used and path.stem not in known]
    findings += [("image without a label file", os.path.relpath(path, folder)) for path in without]
    next(iter(labelled.values())).findings += findings
    classes = base / CLASSES_FILE
    return build_documents(labelled, folder, read_classes(classes) if classes.is_file() else None)


def write(splits: Mapping[str, Split], folder: Path, *, integers: bool = False) -> None:
    """Write the folders of the challenge, with ``classes.txt`` beside them.

    Args:
        splits: to write.
        folder: empty.
        integers: whether corners are rounded to whole pixels, as some readers of the format expect.
    """
    write_classes(splits, folder)
    for place in (_LABELS, _SETS):
        (folder / place).mkdir(parents=True)
    for name, split in splits.items():
        stems = []
        for record, copy in copy_images(split, folder / _IMAGES, states_sizes=True):
            content = _build(copy.name, record.size_hw, named_boxes(split, record), integers)
            ElementTree(content).write(folder / _LABELS / f"{copy.stem}.xml", encoding="utf-8")
            stems.append(f"{copy.stem}\n")
        (folder / _SETS / f"{name}.txt").write_text("".join(stems), encoding="utf-8")


def _bases(folder: Path) -> list[Path]:
    """Return the folders with ``Annotations``, at most two levels down, as in VOCdevkit/VOC2012; else the folder."""
    levels = ([folder], folder.glob("*/"), folder.glob("*/*/"))
    found = next((bases for level in levels if (bases := [path for path in sorted(level) if _has_labels(path)])), [])
    is_split = any(path.name in aliases for path in found for aliases in SPLIT_ALIASES.values())
    return [folder] if is_split or not found else found


def _has_labels(base: Path) -> bool:
    return (base / _LABELS).is_dir()


def _is_label(file: Path) -> bool:
    """Tell whether an XML file starts like one of Pascal VOC."""
    try:
        with file.open("rb") as opened:
            return _START.search(opened.read(_START_BYTES)) is not None
    except OSError:
        return False


def _listed(base: Path, files: Mapping[str, Path], index: ImageIndex) -> tuple[dict[str, list[Path]], list[Finding]]:
    """Return the label files of each split, or the missing image instead, and what the image sets leave out."""
    sets = _image_sets(base)
    splits: dict[str, list[Path]] = {}
    if not sets:
        for file in files.values():
            splits.setdefault(split_of(file, base), []).append(file)
        return {name: splits[name] for name in SPLIT_ALIASES if name in splits}, []
    used: set[Path] = set()
    for name, image_set in sets.items():
        splits[name] = []
        for line in filter(None, map(str.strip, image_set.read_bytes().decode("utf-8-sig", "replace").split("\n"))):
            keys = (line, os.path.splitext(line)[0], line.split()[0])  # a set of one class has a number after the name
            key = next((key for key in keys if key in files), None)
            if key is not None:
                used.add(files[key])
                splits[name].append(files[key])
            elif not (image := index.find(line, base / _IMAGES, name)).is_file():
                splits[name].append(image)
    unused = [file for file in files.values() if file not in used]
    return splits, [("label file in no image set", os.path.relpath(file, base)) for file in unused]


def _image_sets(base: Path) -> dict[str, Path]:
    """Return the list of each split; ``trainval`` is the training split if there is no ``train``."""
    files = {path.stem: path for path in sorted((base / _SETS).glob("*.txt"))}
    found = {
        name: files[alias] for name, aliases in SPLIT_ALIASES.items() for alias in (*aliases, name) if alias in files
    }
    if "train" not in found and "trainval" in files:
        found = {"train": files["trainval"], **{name: path for name, path in found.items() if name == "test"}}
    return found or ({"train": next(iter(files.values()))} if len(files) == 1 else {})


def _read_file(file: Path, near: Path, index: ImageIndex, split: str, draft: Draft) -> None:
    """Add the image of one label file, which is looked for in the folder ``near`` first, to a draft."""
    where = os.path.relpath(file, draft.source)
    try:
        if (size := file.stat().st_size) > _MOST_BYTES:
            raise ValueError(f"{size:,} bytes")
        root = Defused.fromstring(file.read_bytes())
        if root.tag != "annotation":
            raise ValueError(f"the outermost element is {root.tag[:100]}")
    except (OSError, ValueError, ParseError, RecursionError) as error:
        draft.findings.append(("malformed label file", f"{where}: {type(error).__name__}: {error}"))
        return
    stated = (root.findtext("filename") or "").strip()
    name = stated.replace("\\", "/").rpartition("/")[2]
    # A file that was copied and renamed often keeps the old name inside.
    names = [stated] if os.path.splitext(name)[0] == file.stem else [file.stem, *filter(None, [stated])]
    found = [index.find(entry, near, split) for entry in names]
    path = next((path for path in found if path.is_file()), found[-1])
    boxes = []
    for number, entry in enumerate(root.findall("object"), start=1):
        try:
            boxes.append(_box(entry))
        except ValueError as error:
            draft.findings.append(("malformed label", f"{where}, object {number}: {error}"))
    draft.images.append(LabelledImage(path, tuple(boxes), _size(root)))


def _box(entry: Any) -> tuple[str, BoxXYWH]:
    """Return class name and box of an object; ValueError if it has none."""
    name = (entry.findtext("name") or "").strip()
    if not name:
        raise ValueError("it has no name")
    corners = []
    for key in _CORNERS:
        text = entry.findtext(f"bndbox/{key}")
        try:
            corners.append(float(text))
        except (TypeError, ValueError):
            raise ValueError(f"bndbox/{key} of {name!r} is {'missing' if text is None else repr(text)[:100]}") from None
    if not all(map(math.isfinite, corners)):
        raise ValueError(f"the box of {name!r} is {corners}")
    left, top, right, bottom = corners
    return name, (left - 1, top - 1, right - left + 1, bottom - top + 1)


def _size(root: Any) -> SizeHW | None:
    """Return the stated (height, width) in pixels; tools that do not know it write nothing or 0."""
    try:
        height, width = (float(root.findtext(f"size/{side}")) for side in ("height", "width"))
    except (TypeError, ValueError):
        return None
    return (int(height), int(width)) if all(1 <= side < 1e9 and side % 1 == 0 for side in (height, width)) else None


def _build(file_name: str, size_hw: SizeHW, boxes: list[tuple[str, BoxXYWH]], integers: bool) -> Element:
    """Return the content of a label file."""
    root = Element("annotation")
    SubElement(root, "folder").text = _IMAGES
    SubElement(root, "filename").text = file_name
    size = SubElement(root, "size")
    for key, value in (("width", size_hw[1]), ("height", size_hw[0]), ("depth", 3)):
        SubElement(size, key).text = str(value)
    for name, box in boxes:
        entry = SubElement(root, "object")
        for key, text in (("name", name), ("pose", "Unspecified"), ("truncated", "0"), ("difficult", "0")):
            SubElement(entry, key).text = text
        corners = SubElement(entry, "bndbox")
        for key, text in zip(_CORNERS, _corners(box, integers), strict=True):
            SubElement(corners, key).text = text
    indent(root)
    return root


def _corners(box: BoxXYWH, integers: bool) -> Iterator[str]:
    x, y, w, h = box
    left, top, right, bottom = x + 1, y + 1, x + w, y + h
    if integers:
        left, top = round(left), round(top)
        right, bottom = max(left, round(right)), max(top, round(bottom))
    return (f"{value:.4f}".rstrip("0").rstrip(".") for value in (left, top, right, bottom))
