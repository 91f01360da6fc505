"""Change labels in ``metadata.jsonl`` of ImageFolder."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from glip_adapt.core.files import written_whole
from glip_adapt.core.sizes import SizeHW
from glip_adapt.data.documents import CLASSES_FILE, Draft, read_classes
from glip_adapt.data.formats.image_folder import CATEGORIES, boxes_of, metadata_files, parse_line
from glip_adapt.data.label_files import ImageIndex, named_split, read_text
from glip_adapt.data.relabel.label_files import list_classes
from glip_adapt.data.relabel.objects import NamedBox, same_objects


def relabel(folder: Path, image: Path, boxes: Sequence[NamedBox] | None, size_hw: SizeHW) -> None:
    """Change the objects of one image in its line; what the line says beside them stays."""
    images, files = ImageIndex(folder), metadata_files(folder)
    texts = {file: read_text(file).split("\n") for file in files}
    found = next(
        (
            (file, number)
            for file, lines in texts.items()
            for number, line in enumerate(lines)
            if _image_of(line, file, folder, images) == image
        ),
        None,
    )
    if found is None:
        above = [file for file in files if file.parent in image.parents]
        file = max(above, key=lambda file: len(file.parts), default=files[0])
        name = Path(os.path.relpath(image, file.parent)).as_posix()
        texts[file] = [*filter(str.strip, texts[file]), json.dumps({"file_name": name}, ensure_ascii=False), ""]
        found = file, len(texts[file]) - 2
    file, number = found
    list_classes(folder, boxes)
    numbers = _numbers(folder) if any(_has_numbers(line) for lines in texts.values() for line in lines) else None
    row = json.loads(texts[file][number])
    old = row.pop("objects", None)
    if boxes is not None:
        row["objects"] = _objects(old, boxes, numbers, folder, file)
    texts[file][number] = json.dumps(row, ensure_ascii=False)
    with written_whole(file) as temporary:
        temporary.write_text("\n".join(texts[file]), encoding="utf-8")


def _image_of(line: str, file: Path, folder: Path, images: ImageIndex) -> Path | None:
    """Return the image that a line is about, or None."""
    try:
        name = json.loads(line)["file_name"] if line.strip() else ""
        return images.find(name, file.parent, named_split(file, folder) or "train") if name else None
    except (ValueError, LookupError, TypeError):
        return None


def _numbers(folder: Path) -> list[str]:
    return read_classes(folder / CLASSES_FILE)


def _has_numbers(line: str) -> bool:
    """Tell whether the categories of a line are numbers."""
    try:
        objects = parse_line(line)[1] if line.strip() else None
    except ValueError:
        return False
    return any(isinstance(category, int) for category, _ in objects or ())


def _objects(
    old: Any, boxes: Sequence[NamedBox], numbers: Sequence[str] | None, folder: Path, file: Path
) -> dict[str, list[Any]] | list[dict[str, Any]]:
    """Return the objects of an image in the form of those of before: one list for each of their facts, or one of all.

    Facts of objects that stay are kept; those of new ones that nobody stated are null.
    """
    is_list = isinstance(old, list)
    if is_list:
        entries = [dict(entry) for entry in old]
    else:
        lists = {k: v for k, v in (old or {}).items() if isinstance(v, list) and len(v) == len(old.get("bbox", ()))}
        entries = [dict(zip(lists, facts, strict=True)) for facts in zip(*lists.values(), strict=True)]
    keys = dict.fromkeys(key for entry in entries for key in entry)
    category = next((key for key in CATEGORIES if key in (keys or (old if isinstance(old, dict) else ()))), None)
    category = category or ("category" if is_list else "categories")
    sound = [(entry, found[0]) for entry in entries if (found := _read(entry, category, numbers, folder, file))]
    made: list[dict[str, Any]] = [entry for entry in entries if all(entry is not other for other, _ in sound)]
    for (name, box), place in zip(boxes, same_objects([named for _, named in sound], boxes), strict=True):
        label = name if numbers is None else numbers.index(name)
        made.append({"bbox": list(box), category: label} if place is None else sound[place][0])
    if is_list:
        return made
    return {key: [entry.get(key) for entry in made] for key in dict.fromkeys(["bbox", category, *keys])}


def _read(
    entry: dict[str, Any], category: str, numbers: Sequence[str] | None, folder: Path, file: Path
) -> tuple[NamedBox, ...]:
    """Return an object of the file as the reader does; nothing if it is malformed."""
    return boxes_of([(entry.get(category), entry.get("bbox"))], numbers, file.name, folder, Draft(folder))
