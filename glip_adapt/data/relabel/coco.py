"""Change labels in COCO files."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from glip_adapt.core.files import written_whole
from glip_adapt.core.sizes import SizeHW
from glip_adapt.data.documents import BoxXYWH
from glip_adapt.data.entries import box_of, image_path, root_category
from glip_adapt.data.formats.coco import read_file
from glip_adapt.data.label_files import named_split
from glip_adapt.data.layouts import coco_layout, has_coco_layout
from glip_adapt.data.relabel.objects import NamedBox, same_objects

FILE = "_annotations.coco.json"
_LISTS = ("images", "annotations", "categories")


def relabel(folder: Path, image: Path, boxes: Sequence[NamedBox] | None, size_hw: SizeHW) -> None:
    """Change the labels of one image in the COCO file of its split; a folder without one gets one for all images."""
    layout = coco_layout(folder) if has_coco_layout(folder) else {"train": (folder / FILE, [folder])}
    files = {
        name: _File(file, folders) for name, (file, folders) in layout.items() if file.exists() or len(layout) == 1
    }
    stated = named_split(image, folder)
    guess = files[stated] if stated in files else next(iter(files.values()))
    mine = next((file for file in files.values() if file.entry_of(image) is not None), guess)
    for name in dict.fromkeys(name for name, _ in boxes or ()):
        for file in files.values():
            file.add_class(name)
    mine.relabel(image, boxes, size_hw)
    for file in sorted(files.values(), key=lambda file: file is mine):  # classes first: all splits need the same
        file.save()


class _File:
    """A COCO file that is being changed."""

    def __init__(self, path: Path, image_dirs: Sequence[Path]) -> None:
        self.path, self.is_changed = path, False
        self.content: dict[str, Any] = {name: [] for name in _LISTS}
        self.image_dir = image_dirs[0]
        if path.exists():
            source = read_file(path, *image_dirs)
            if source.findings:
                raise ValueError(f"{path}: {source.findings[0][1]}. Restore the file, or remove it to start anew.")
            self.content, self.image_dir = self.content | dict(source.document), source.image_dir

    def entry_of(self, image: Path) -> dict[str, Any] | None:
        """Return the entry of an image, or None."""
        path = os.path.abspath(image)
        entries = ((e, image_path(self.image_dir, e["file_name"])) for e in self.content["images"])
        return next((entry for entry, there in entries if os.path.abspath(there) == path), None)

    def add_class(self, name: str) -> None:
        """Add a category, unless there is one of that name."""
        listed = self.content["categories"]
        if any(entry["name"] == name for entry in listed):
            return
        # Below the root, if there is one: else that would no longer be a heading of all others, and so be a class.
        root = root_category(self.content)
        above = {"supercategory": root[1]} if root else {}
        fresh = {"id": 1 + max((entry["id"] for entry in listed), default=0), "name": name}
        self.content["categories"], self.is_changed = [*listed, fresh | above], True

    def relabel(self, image: Path, boxes: Sequence[NamedBox] | None, size_hw: SizeHW) -> None:
        """Replace the boxes of an image; crowd regions stay, and so does what a box of before says beside its edges."""
        entry = self.entry_of(image)
        if entry is None:
            entry = self._new_entry(image, size_hw)
            self.content["images"] = [*self.content["images"], entry]
        mine = [note for note in self.content["annotations"] if note["image_id"] == entry["id"]]
        others = [note for note in self.content["annotations"] if note["image_id"] != entry["id"]]
        if boxes is None:
            self.content["images"] = [other for other in self.content["images"] if other is not entry]
        else:
            others += [note for note in mine if not _is_object(note)]
            others += self._notes(entry["id"], [note for note in mine if _is_object(note)], boxes)
        self.content["annotations"], self.is_changed = others, True

    def save(self) -> None:
        """Replace the file, if something has changed."""
        if self.is_changed:
            with written_whole(self.path) as temporary:
                temporary.write_text(json.dumps(self.content, ensure_ascii=False), encoding="utf-8")

    def _new_entry(self, image: Path, size_hw: SizeHW) -> dict[str, Any]:
        name = Path(os.path.relpath(image, self.image_dir)).as_posix()
        return {"id": _next_id(self.content["images"]), "file_name": name, "height": size_hw[0], "width": size_hw[1]}

    def _notes(self, image_id: int | str, old: list[dict[str, Any]], boxes: Sequence[NamedBox]) -> list[dict[str, Any]]:
        """Return the annotations of an image; those of the same class and box as before stay as they are."""
        name_of = {entry["id"]: entry["name"] for entry in self.content["categories"]}
        id_of = {name: key for key, name in reversed(name_of.items())}
        before = [(name_of[note["category_id"]], _edges(note)) for note in old]
        fresh, notes = _next_id(self.content["annotations"]), []
        for (name, box), place in zip(boxes, same_objects(before, boxes), strict=True):
            if place is not None:
                notes.append(old[place])
                continue
            note = {"id": fresh, "image_id": image_id, "category_id": id_of[name], "bbox": list(box)}
            notes.append(note | {"area": box[2] * box[3], "iscrowd": 0})
            fresh += 1
        return notes


def _is_object(note: dict[str, Any]) -> bool:
    """Tell whether an annotation is a box of one object; neither a crowd region, nor without a box."""
    return note.get("iscrowd") not in (1, True) and box_of(note) is not None


def _edges(note: dict[str, Any]) -> BoxXYWH:
    x, y, w, h = box_of(note) or (0.0, 0.0, 0.0, 0.0)
    return x, y, w, h


def _next_id(entries: Sequence[dict[str, Any]]) -> int:
    return 1 + max((entry["id"] for entry in entries if isinstance(entry.get("id"), int)), default=0)
