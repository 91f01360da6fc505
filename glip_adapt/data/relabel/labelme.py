"""Change labels in files of LabelMe."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from glip_adapt.core.files import written_whole
from glip_adapt.core.sizes import SizeHW
from glip_adapt.data.documents import CLASSES_FILE, Draft
from glip_adapt.data.formats.labelme import VERSION, find_image, has_shapes, objects_of
from glip_adapt.data.label_files import ImageIndex, files_below, read_json, split_of
from glip_adapt.data.relabel.label_files import label_file_of, list_classes
from glip_adapt.data.relabel.objects import NamedBox, same_objects


def relabel(folder: Path, image: Path, boxes: Sequence[NamedBox] | None, size_hw: SizeHW) -> None:
    """Change the labels of one image in its JSON file; polygons and masks stay where their boxes do."""
    images = ImageIndex(folder)

    def image_of(file: Path) -> Path | None:
        content = _content(file)
        return find_image(content, file, split_of(file, folder), images) if content else None

    file = label_file_of(image, image.with_suffix(".json"), lambda: files_below(folder, ".json"), image_of)
    if boxes is None:
        file.unlink(missing_ok=True)
        return
    list_classes(folder, boxes, (CLASSES_FILE, "labels.txt"))
    size = {"imageData": None, "imageHeight": size_hw[0], "imageWidth": size_hw[1]}
    empty: dict[str, Any] = {"version": VERSION, "flags": {}, "shapes": [], "imagePath": image.name} | size
    content = _content(file) or empty
    shapes = content["shapes"]
    old = objects_of(shapes, file.name, Draft(folder))
    taken = {position for *_, positions in old for position in positions}
    kept = [shape for position, shape in enumerate(shapes) if position not in taken]
    for (name, (x, y, w, h)), place in zip(boxes, same_objects([(n, b) for n, b, _ in old], boxes), strict=True):
        if place is not None:
            kept += [shapes[position] for position in old[place][2]]
            continue
        fresh: dict[str, Any] = {"label": name, "points": [[x, y], [x + w, y + h]], "group_id": None}
        kept.append(fresh | {"shape_type": "rectangle", "flags": {}})
    with written_whole(file) as temporary:
        text = json.dumps(content | {"shapes": kept}, ensure_ascii=False, indent=2)
        temporary.write_text(text, encoding="utf-8")


def _content(file: Path) -> dict[str, Any] | None:
    """Return the content of a file with shapes, or None."""
    try:
        content = read_json(file)
    except ValueError:
        return None
    return content if has_shapes(content) and isinstance(content["shapes"], list) else None
