"""Change labels in exports of Label Studio."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from glip_adapt.core.files import written_whole
from glip_adapt.core.sizes import SizeHW
from glip_adapt.data.documents import Draft
from glip_adapt.data.formats.label_studio import find_image, flat_regions, is_export, percent_of, read_task
from glip_adapt.data.label_files import ImageIndex, files_below, named_split, one_file_per_split, read_json
from glip_adapt.data.relabel.label_files import list_classes
from glip_adapt.data.relabel.objects import NamedBox, same_objects

_TAG = "label"  # of new regions where the file has none


def relabel(folder: Path, image: Path, boxes: Sequence[NamedBox] | None, size_hw: SizeHW) -> None:
    """Change the regions of one image in its task; regions that stay keep their rotation, polygon and id."""
    images = ImageIndex(folder)
    files = one_file_per_split(filter(is_export, files_below(folder, ".json")), folder)
    contents = {file: list(read_json(file)) for file in files}
    tasks = {
        file: next((n for n, task in enumerate(content) if _image_of(task, file, files[file], images) == image), None)
        for file, content in contents.items()
    }
    stated = named_split(image, folder) or "train"
    guess = next((file for file in files if files[file] == stated), next(iter(files)))
    file = next((file for file, number in tasks.items() if number is not None), guess)
    content, number = contents[file], tasks[file]
    list_classes(folder, boxes)
    if number is None:
        number = len(content)
        content.append(_new_task(image, folder, content))
    if boxes is None:
        content[number] = _without(content[number])
    else:
        old = _objects(content[number], file, files[file] or "train", images)
        content[number] = _labelled(content[number], old, boxes, size_hw)
    if content[number] is None:
        del content[number]
    with written_whole(file) as temporary:
        temporary.write_text(json.dumps(content, ensure_ascii=False, indent=1), encoding="utf-8")


def _image_of(task: Any, file: Path, split: str | None, images: ImageIndex) -> Path | None:
    """Return the image of a task, or None."""
    if not isinstance(task, dict):
        return None
    try:
        return find_image(task["data"] if _is_full(task) else task, file.parent, split or "train", images)
    except ValueError:
        return None


def _is_full(task: Mapping[str, Any]) -> bool:
    """Tell whether a task is one of JSON, not of JSON-MIN."""
    return isinstance(task.get("data"), dict)


def _new_task(image: Path, folder: Path, others: Sequence[Any]) -> dict[str, Any]:
    """Return a task of the same form as others."""
    url = "/data/local-files/?d=" + quote(Path(os.path.relpath(image, folder)).as_posix())
    if all(isinstance(task, dict) and not _is_full(task) for task in others):
        return {"image": url, "annotation_id": 1 + len(others)}
    return {"data": {"image": url}, "annotations": []}


def _without(task: dict[str, Any]) -> dict[str, Any] | None:
    """Return a task that nobody has looked at yet; None if its form cannot say so."""
    return task | {("completions" if "completions" in task else "annotations"): []} if _is_full(task) else None


def _chosen(task: dict[str, Any]) -> tuple[list[Any], int | None]:
    """Return the annotations of a task, and the position of the one that counts."""
    stated = task.get("annotations", task.get("completions"))
    annotations = list(stated) if isinstance(stated, list) else []
    counting = [
        n for n, a in enumerate(annotations) if isinstance(a, dict) and not (a.get("was_cancelled") or a.get("skipped"))
    ]
    first = next((n for n in counting if annotations[n].get("ground_truth")), next(iter(counting), None))
    return annotations, first


def _regions(task: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the regions of the annotation that counts, as they stand in the file."""
    if not _is_full(task):
        return flat_regions(task)
    annotations, chosen = _chosen(task)
    return [] if chosen is None else [r for r in annotations[chosen].get("result", []) if isinstance(r, dict)]


def _objects(
    task: dict[str, Any], file: Path, split: str, images: ImageIndex
) -> list[tuple[list[dict[str, Any]], NamedBox]]:
    """Return the regions of each object; a shape and its class may be two regions of one id."""
    groups: dict[Any, list[dict[str, Any]]] = {}
    for position, region in enumerate(_regions(task)):
        groups.setdefault(region.get("id") or (position,), []).append(region)
    found = []
    for regions in groups.values():
        read = read_task(_with(task, regions), "", file.parent, split, images, Draft(file))
        if read is not None and len(read.boxes) == 1:
            found.append((regions, read.boxes[0]))
    return found


def _with(task: dict[str, Any], regions: list[dict[str, Any]]) -> dict[str, Any]:
    """Return a task with other regions."""
    if not _is_full(task):
        tags = [
            key for key, value in task.items() if isinstance(value, list) and any(isinstance(v, dict) for v in value)
        ]
        return task | {tag: [] for tag in tags} | {next(iter(tags), _TAG): regions}
    annotations, chosen = _chosen(task)
    if chosen is None:
        annotations.append({"result": regions, "was_cancelled": False})
    else:
        annotations[chosen] = annotations[chosen] | {"result": regions}
    return task | {("completions" if "completions" in task else "annotations"): annotations}


def _labelled(
    task: dict[str, Any],
    old: Sequence[tuple[list[dict[str, Any]], NamedBox]],
    boxes: Sequence[NamedBox],
    size_hw: SizeHW,
) -> dict[str, Any]:
    """Return a task with other objects."""
    taken = {id(region) for regions, _ in old for region in regions}
    regions = _regions(task)
    kept = [region for region in regions if id(region) not in taken]
    example = next((region for region in regions if id(region) in taken), {})
    for number, place in enumerate(same_objects([named for _, named in old], boxes)):
        if place is not None:
            kept += old[place][0]
            continue
        fresh = _region(boxes[number], size_hw)
        kept.append(_full_region(fresh, example) if _is_full(task) else fresh)
    made = _with(task, kept)
    return made if _is_full(task) or kept else made | {_TAG: []}


def _region(named: NamedBox, size_hw: SizeHW) -> dict[str, Any]:
    """Return a new region of JSON-MIN."""
    (name, box), (height, width) = named, size_hw
    value = percent_of(box, width, height) | {"rectanglelabels": [name]}
    return value | {"original_width": width, "original_height": height}


def _full_region(region: Mapping[str, Any], example: Mapping[str, Any]) -> dict[str, Any]:
    """Return a region of JSON-MIN as one of JSON, with the tags of another one."""
    size = {key: value for key, value in region.items() if key.startswith("original_")}
    value = {key: value for key, value in region.items() if key not in size}
    common = {"from_name": example.get("from_name", _TAG), "to_name": example.get("to_name", "image")}
    kind = {"type": "rectanglelabels", "id": secrets.token_hex(5), "image_rotation": 0}
    return common | kind | size | {"value": value}
