"""Change labels in files of Pascal VOC."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import ElementTree, indent

from defusedxml import ElementTree as Defused

from glip_adapt.core.files import written_whole
from glip_adapt.core.sizes import SizeHW
from glip_adapt.data.documents import Draft
from glip_adapt.data.formats.voc import IMAGES, LABELS, bases_of, box_of, build_label, has_labels, image_sets
from glip_adapt.data.formats.voc import read_label_file as read_file
from glip_adapt.data.label_files import ImageIndex, files_below, named_split
from glip_adapt.data.relabel.label_files import label_file_of, list_classes
from glip_adapt.data.relabel.objects import NamedBox, same_objects


def relabel(folder: Path, image: Path, boxes: Sequence[NamedBox] | None, size_hw: SizeHW) -> None:
    """Change the labels of one image in its XML file; objects that stay keep their other elements."""
    base, images = bases_of(folder)[0], ImageIndex(folder)
    below, near = (base / LABELS, base / IMAGES) if has_labels(base) else (base, base)
    place = image.relative_to(near) if image.is_relative_to(near) else Path(image.name)

    def image_of(file: Path) -> Path | None:
        draft = Draft(folder)
        read_file(file, near / file.relative_to(below).parent, images, "train", draft)
        return draft.images[0].path if draft.images else None

    likely = (below / place if has_labels(base) else image).with_suffix(".xml")
    file = label_file_of(image, likely, lambda: files_below(below, ".xml"), image_of)
    if boxes is None:
        file.unlink(missing_ok=True)  # a list of the images of a split may name what has no labels
        return
    list_classes(folder, boxes)
    root = Defused.fromstring(file.read_bytes()) if file.is_file() else build_label(image.name, size_hw, [], False)
    old = [(entry, named) for entry in root.findall("object") if (named := _named(entry)) is not None]
    for entry, _ in old:
        root.remove(entry)
    fresh = build_label(image.name, size_hw, list(boxes), False).findall("object")
    for entry, place_before in zip(fresh, same_objects([named for _, named in old], boxes), strict=True):
        root.append(entry if place_before is None else old[place_before][0])
    indent(root)
    with written_whole(file) as temporary:
        ElementTree(root).write(temporary, encoding="utf-8")
    _list_image(base, file.relative_to(below).with_suffix("").as_posix(), named_split(image, folder))


def _named(entry: Any) -> NamedBox | None:
    try:
        return box_of(entry)
    except ValueError:
        return None


def _list_image(base: Path, stem: str, split: str | None) -> None:
    """Add an image to the list of its split, if there are such lists and none names it."""
    sets = image_sets(base)
    texts = {name: path.read_bytes().decode("utf-8-sig", "replace") for name, path in sets.items()}
    lines = {line.strip() for text in texts.values() for line in text.split("\n")}
    if not sets or stem in lines | {line.split()[0] for line in lines if line}:  # a list of one class has a number too
        return
    chosen = split if split in sets else next(iter(sets))
    listed = texts[chosen].rstrip("\n")
    with written_whole(sets[chosen]) as temporary:
        temporary.write_text(f"{listed}\n{stem}\n".lstrip("\n"), encoding="utf-8")
