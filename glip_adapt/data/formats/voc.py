"""Pascal VOC format: one XML file per image, with corners in pixels that count from 1 and belong to the box.

In the folders of the challenge (``Annotations``, ``JPEGImages``, ``ImageSets/Main``), or beside the images, as LabelImg
writes it and Roboflow with one folder per split.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element, ElementTree, ParseError, SubElement, indent

from defusedxml import ElementTree as Defused

from glip_adapt.core.sizes import SizeHW
from glip_adapt.data.documents import (
    SPLIT_ALIASES,
    BoxXYWH,
    Draft,
    LabelledImage,
    SplitDocument,
    copy_images,
    named_boxes,
    write_classes,
)
from glip_adapt.data.label_files import ImageIndex, documents_of, files_below, split_of, to_number
from glip_adapt.data.split import Split

NAME = "voc"
LAYOUT = "an .xml file of Pascal VOC for each image, in Annotations or beside it"

LABELS, IMAGES, _SETS = "Annotations", "JPEGImages", "ImageSets/Main"
_MOST_BYTES = 2**24
_START_BYTES = 4096
_START = re.compile(rb"<annotation[\s>]")
_CORNERS = ("xmin", "ymin", "xmax", "ymax")


def recognises(folder: Path) -> bool:
    """Tell whether a folder has XML files in ``Annotations``, or XML files that start like those of Pascal VOC."""
    bases = bases_of(folder)
    if any(has_labels(base) for base in bases):
        return any(files_below(base / LABELS, ".xml") for base in bases)
    return any(map(_is_label, files_below(folder, ".xml")))


def read(folder: Path) -> dict[str, SplitDocument]:
    """Return the splits of a folder; files that no image set names, and images without a file, are in none.

    Raises:
        ValueError: if the folder holds several datasets, or no file speaks of an image.
    """
    base, *others = bases_of(folder)
    if others:
        raise ValueError(f"{folder} holds several datasets, in {base} and {others[0]}. Give the folder of one.")
    images = ImageIndex(base)
    stems = {path.stem for path in images.paths}
    below = base / LABELS if has_labels(base) else base
    files = [file for file in files_below(below, ".xml") if has_labels(base) or file.stem in stems or _is_label(file)]
    by_name = {file.relative_to(below).with_suffix("").as_posix(): file for file in files}
    listed = _listed(base, by_name, images)
    drafts = {name: Draft(folder) for name in listed}
    for name, paths in listed.items():
        for path in paths:
            if path.suffix.lower() == ".xml":
                near = (base / IMAGES if has_labels(base) else base) / path.relative_to(below).parent
                read_label_file(path, near, images, name, drafts[name])
            else:
                drafts[name].images.append(LabelledImage(path))  # the check says that it is missing
    unlisted = set(files).difference(*listed.values())
    for draft in [*drafts.values()][:1]:
        draft.findings += [("label file in no image set", os.path.relpath(file, folder)) for file in sorted(unlisted)]
    stems = {file.stem for file in unlisted}
    images.paths = [path for path in images.paths if path.stem not in stems]  # they have a label file
    return documents_of(drafts, images)


def write(splits: Mapping[str, Split], folder: Path, *, integers: bool = False) -> None:
    """Write the folders of the challenge, with ``classes.txt`` beside them.

    Args:
        splits: to write.
        folder: empty.
        integers: whether corners are rounded to whole pixels, as some readers of the format expect.
    """
    write_classes(splits, folder)
    for place in (LABELS, _SETS):
        (folder / place).mkdir(parents=True)
    for name, split in splits.items():
        stems = []
        for record, copy in copy_images(split, folder / IMAGES, states_sizes=True):
            content = build_label(copy.name, record.size_hw, named_boxes(split, record), integers)
            ElementTree(content).write(folder / LABELS / f"{copy.stem}.xml", encoding="utf-8")
            stems.append(f"{copy.stem}\n")
        (folder / _SETS / f"{name}.txt").write_text("".join(stems), encoding="utf-8")


def bases_of(folder: Path) -> list[Path]:
    """Return the folders with ``Annotations``, at most two levels down, as in VOCdevkit/VOC2012; else the folder."""
    levels = ([folder], folder.glob("*/"), folder.glob("*/*/"))
    found = next((bases for level in levels if (bases := [path for path in sorted(level) if has_labels(path)])), [])
    is_split = any(path.name in aliases for path in found for aliases in SPLIT_ALIASES.values())
    return [folder] if is_split or not found else found


def has_labels(base: Path) -> bool:
    """Tell whether a folder has the folder of label files of the challenge."""
    return (base / LABELS).is_dir()


def _is_label(file: Path) -> bool:
    """Tell whether an XML file starts like one of Pascal VOC."""
    try:
        with file.open("rb") as opened:
            return _START.search(opened.read(_START_BYTES)) is not None
    except OSError:
        return False


def _listed(base: Path, files: Mapping[str, Path], images: ImageIndex) -> dict[str, list[Path]]:
    """Return the label files of each split; for an image without one, the image if it is missing as well."""
    splits: dict[str, list[Path]] = {}
    sets = image_sets(base)
    if not sets:
        for file in files.values():
            splits.setdefault(split_of(file, base), []).append(file)
    for name, image_set in sets.items():
        splits[name] = []
        for line in filter(None, map(str.strip, image_set.read_bytes().decode("utf-8-sig", "replace").split("\n"))):
            keys = (line, os.path.splitext(line)[0], line.split()[0])  # a set of one class has a number after the name
            labels = [files[key] for key in keys if key in files]
            found = labels[:1] or [images.find(line, base / IMAGES, name)]
            splits[name] += found if labels or not found[0].is_file() else []
    return splits


def image_sets(base: Path) -> dict[str, Path]:
    """Return the list of each split; ``trainval`` is the training split if there is no ``train``."""
    files = {path.stem: path for path in sorted((base / _SETS).glob("*.txt"))}
    found = {
        name: files[alias] for name, aliases in SPLIT_ALIASES.items() for alias in (*aliases, name) if alias in files
    }
    if "train" not in found and "trainval" in files:
        found = {"train": files["trainval"], **{name: path for name, path in found.items() if name == "test"}}
    return found or ({"train": next(iter(files.values()))} if len(files) == 1 else {})


def read_label_file(file: Path, near: Path, images: ImageIndex, split: str, draft: Draft) -> None:
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
    found = [images.find(entry, near, split) for entry in names]
    path = next((path for path in found if path.is_file()), found[-1])
    boxes = []
    for number, entry in enumerate(root.findall("object"), start=1):
        try:
            boxes.append(box_of(entry))
        except ValueError as error:
            draft.findings.append(("malformed label", f"{where}, object {number}: {error}"))
    draft.images.append(LabelledImage(path, tuple(boxes), _size(root)))


def box_of(entry: Any) -> tuple[str, BoxXYWH]:
    """Return class name and box of an object; ValueError if it has none."""
    name = (entry.findtext("name") or "").strip()
    if not name:
        raise ValueError("it has no name")
    if (corners := entry.find("bndbox")) is None:
        raise ValueError(f"{name!r} has no bndbox")
    left, top, right, bottom = (to_number(corners.findtext(key)) for key in _CORNERS)
    return name, (left - 1, top - 1, right - left + 1, bottom - top + 1)


def _size(root: Any) -> SizeHW | None:
    """Return the stated (height, width) in pixels; tools that do not know it write nothing or 0."""
    try:
        height, width = (float(root.findtext(f"size/{side}")) for side in ("height", "width"))
    except (TypeError, ValueError):
        return None
    return (int(height), int(width)) if all(1 <= side < 1e9 and side % 1 == 0 for side in (height, width)) else None


def build_label(file_name: str, size_hw: SizeHW, boxes: list[tuple[str, BoxXYWH]], integers: bool) -> Element:
    """Return the content of a label file."""
    root = Element("annotation")
    SubElement(root, "folder").text = IMAGES
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
