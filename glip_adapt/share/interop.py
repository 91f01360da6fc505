"""Convert detections for other tools: ``supervision``, and pseudo-labels in COCO, CSV, CVAT and YOLO form.

Labels speak of images that stay where they are; boxes are clipped to the image as people see it, upright.
"""

from __future__ import annotations

import csv
import json
import os
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from xml.etree.ElementTree import Element, ElementTree, SubElement, indent

import numpy as np
import yaml

from glip_adapt.core import boxes
from glip_adapt.core.files import scratch_folder, written_whole
from glip_adapt.core.structures import Detections
from glip_adapt.data.documents import CLASSES_FILE
from glip_adapt.data.images import read_header

if TYPE_CHECKING:
    import supervision

CSV_HEADER = ("filename", "width", "height", "class", "xmin", "ymin", "xmax", "ymax", "score")
YOLO_SETTINGS = "data.yaml"
_CVAT_CORNERS = ("xtl", "ytl", "xbr", "ybr")
_TEXT: Any = {"encoding": "utf-8", "errors": "surrogateescape", "newline": ""}  # file names may be no UTF-8


def to_supervision(detections: Detections) -> supervision.Detections:
    """Return detections as ``supervision.Detections``: boxes, scores, labels, masks, and ``data["class_name"]``.

    Args:
        detections: of one image, from ``model.predict`` or ``segment``.

    Raises:
        ModuleNotFoundError: if supervision is not installed.
    """
    try:
        import supervision
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("to_supervision needs supervision: pip install 'glip-adapt[supervision]'.") from error
    labels = detections.labels.numpy()
    return supervision.Detections(
        xyxy=detections.boxes_xyxy.numpy().copy(),
        mask=np.stack([mask.to_array() for mask in detections.masks]) if detections.masks else None,
        confidence=detections.scores.numpy(),
        class_id=labels,
        data={"class_name": np.array([detections.class_names[label] for label in labels], dtype=str)},
    )


def write_pseudo_labels(
    file: str | Path, images: Sequence[Path], found: Sequence[Detections], class_names: Sequence[str]
) -> None:
    """Write detections as the annotations of a COCO dataset, each with its score as an extra field.

    Images without a detection stay in as background. File names are relative to the folder of ``file``. Detections
    with masks have a ``segmentation`` as run lengths, and the area of the mask.

    Args:
        file: COCO JSON to write.
        images: paths.
        found: for each image, the detections to take as truth: ``model.predict(…, threshold=score)``.
        class_names: in label order; category ids count from 1.
    """
    file = Path(file)
    entries: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image_id, image in enumerate(_clipped(images, found), start=1):
        name = _relative(image.path, file.parent)
        entries.append({"id": image_id, "file_name": name, "height": image.height, "width": image.width})
        boxes_xywh = boxes.edges_to_xywh(image.found.boxes_xyxy).tolist()
        scores, labels = image.found.scores.tolist(), image.found.labels.tolist()
        masks = [{"segmentation": m.to_rle(), "area": m.area} for m in image.found.masks] or [{}] * len(labels)
        for (x, y, w, h), score, label, mask in zip(boxes_xywh, scores, labels, masks, strict=True):
            box = {"bbox": [x, y, w, h], "area": w * h, "iscrowd": 0, "score": score} | mask
            annotations.append({"id": len(annotations) + 1, "image_id": image_id, "category_id": label + 1, **box})
    categories = [{"id": label + 1, "name": name} for label, name in enumerate(class_names)]
    document = {"images": entries, "annotations": annotations, "categories": categories}
    with written_whole(file) as temporary:
        temporary.write_text(json.dumps(document), encoding="utf-8")


def write_boxes_csv(file: str | Path, images: Sequence[Path], found: Sequence[Detections]) -> None:
    """Write detections as a table with a row per box: ``CSV_HEADER``, edges and sizes in pixels.

    An image without a detection has one row with empty fields. File names are relative to the folder of ``file``.

    Args:
        file: CSV to write, UTF-8.
        images: paths.
        found: for each image, its detections with ``class_names``.
    """
    file = Path(file)
    with written_whole(file) as temporary, temporary.open("w", **_TEXT) as opened:
        table = csv.writer(opened, lineterminator="\n")
        table.writerow(CSV_HEADER)
        for image in _clipped(images, found):
            start = (_relative(image.path, file.parent), image.width, image.height)
            columns = (image.found.labels, image.found.boxes_xyxy, image.found.scores)
            for label, edges, score in zip(*(column.tolist() for column in columns), strict=True):
                numbers = (*(round(edge, 3) for edge in edges), round(score, 6))
                table.writerow((*start, image.found.class_names[label], *numbers))
            if not len(image.found):
                table.writerow((*start, *[""] * (len(CSV_HEADER) - len(start))))


def write_cvat(file: str | Path, images: Sequence[Path], found: Sequence[Detections]) -> None:
    """Write detections as annotations to upload to a task of CVAT: ``CVAT for images 1.1``, without scores.

    CVAT finds its frames by the names of images. They are those of the files, where two are alike with their folders
    below the one that holds all images, as CVAT names what is uploaded by folder.

    Args:
        file: XML to write.
        images: paths.
        found: for each image, its detections with ``class_names``.
    """
    uses = Counter(path.name for path in images)
    places = [Path(os.path.abspath(path)) for path in images]
    root = os.path.commonpath([place.parent for place in places]) if places else ""
    document = Element("annotations")
    SubElement(document, "version").text = "1.1"
    for number, (image, place) in enumerate(zip(_clipped(images, found), places, strict=True)):
        name = place.name if uses[place.name] == 1 else place.relative_to(root).as_posix()
        sides = {"width": str(image.width), "height": str(image.height)}
        frame = SubElement(document, "image", {"id": str(number), "name": _printable(name)} | sides)
        for label, edges in zip(image.found.labels.tolist(), image.found.boxes_xyxy.tolist(), strict=True):
            corners = {key: f"{edge:.2f}" for key, edge in zip(_CVAT_CORNERS, edges, strict=True)}
            class_name = _printable(image.found.class_names[label])
            SubElement(
                frame, "box", {"label": class_name, "source": "auto", "occluded": "0"} | corners | {"z_order": "0"}
            )
    indent(document)
    with written_whole(Path(file)) as temporary:
        ElementTree(document).write(temporary, encoding="utf-8", xml_declaration=True)


def place_yolo_labels(folder: Path, images: Sequence[Path]) -> dict[Path, Path]:
    """Return image → path of its label file below ``folder/labels``; writes nothing.

    Images below ``folder/images`` have their labels at the same place below ``labels``, as YOLO tools expect. The label
    file of another image has its name; a number is added where two share a stem.

    Raises:
        FileExistsError: if the folder holds labels already.
        ValueError: if two images below ``folder/images`` would share a label file.
    """
    for path in (folder / "labels", folder / CLASSES_FILE, folder / YOLO_SETTINGS):
        if path.exists():
            raise FileExistsError(f"{path} exists, and labels that may be corrected by hand stay. Name a new folder.")
    places = {path: place for path in images if (place := _below(path, folder / "images")) is not None}
    uses = Counter(places.values())
    if shared := [str(path) for path, place in places.items() if uses[place] > 1]:
        raise ValueError(f"{' and '.join(shared[:2])} would share a label file. Rename one.")
    taken = {str(place).casefold() for place in places.values()}
    taken |= {path.with_suffix(".txt").name.casefold() for path in (folder / "images").glob("*")}
    for path in images:
        if path not in places:
            names = (f"{path.stem}{f'_{number}' if number > 1 else ''}.txt" for number in range(1, len(taken) + 2))
            name = next(name for name in names if name.casefold() not in taken)
            taken.add(name.casefold())
            places[path] = Path(name)
    return {path: folder / "labels" / places[path] for path in images}


def write_yolo_labels(
    folder: Path, images: Sequence[Path], found: Sequence[Detections], class_names: Sequence[str]
) -> None:
    """Write detections in YOLO form: ``labels/NAME.txt``, ``classes.txt`` and ``data.yaml``, without scores.

    Images that do not lie below ``folder/images`` are linked there, so that the folder is a whole dataset.

    Args:
        folder: made if there is none; see ``place_yolo_labels``.
        images: paths.
        found: for each image, its detections; a file without lines is written where there are none.
        class_names: in label order.

    Raises:
        FileExistsError, ValueError: as ``place_yolo_labels``.
    """
    places = place_yolo_labels(folder, images)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "images").mkdir(exist_ok=True)
    with scratch_folder(folder / "labels") as scratch:
        for image in _clipped(images, found):
            file = scratch / "labels" / places[image.path].relative_to(folder / "labels")
            file.parent.mkdir(parents=True, exist_ok=True)
            edges = image.found.boxes_xyxy.double()
            centres, sizes = (edges[:, :2] + edges[:, 2:]) / 2, edges[:, 2:] - edges[:, :2]
            scale = edges.new_tensor((image.width, image.height))
            rows = zip(image.found.labels.tolist(), (centres / scale).tolist(), (sizes / scale).tolist(), strict=True)
            lines = (" ".join([str(label), *(f"{v:.8f}" for v in (*centre, *size))]) for label, centre, size in rows)
            file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
            if _below(image.path, folder / "images") is None:
                link = folder / "images" / (file.stem + image.path.suffix)
                link.symlink_to(os.path.relpath(image.path.resolve(), link.parent.resolve()))
        (scratch / "labels").mkdir(exist_ok=True)
        os.replace(scratch / "labels", folder / "labels")
    with written_whole(folder / CLASSES_FILE) as temporary:
        temporary.write_text("".join(f"{' '.join(name.split())}\n" for name in class_names), encoding="utf-8")
    settings = {"train": "images", "names": dict(enumerate(class_names))}
    with written_whole(folder / YOLO_SETTINGS) as temporary:
        text = yaml.safe_dump(settings, allow_unicode=True, sort_keys=False, width=10**6)
        temporary.write_text(f"# Add val: a folder of images with labels that were checked.\n{text}", encoding="utf-8")


class _Clipped(NamedTuple):
    """One image: its path, its size in pixels as people see it, and its detections, clipped to it."""

    path: Path
    height: int
    width: int
    found: Detections


def _clipped(images: Sequence[Path], found: Sequence[Detections]) -> Iterator[_Clipped]:
    for path, detections in zip(images, found, strict=True):
        height, width = read_header(path).size_hw
        limit = detections.boxes_xyxy.new_tensor((width, height, width, height))
        edges = detections.boxes_xyxy.clamp(min=0).minimum(limit)
        yield _Clipped(path, height, width, replace(detections, boxes_xyxy=edges))


def _printable(text: str) -> str:
    """Return a text without what XML cannot hold: control codes, and bytes of names that are no UTF-8."""
    return "".join("_" if unicodedata.category(letter) in ("Cc", "Cs") else letter for letter in text)


def _relative(path: Path, folder: Path) -> str:
    return Path(os.path.relpath(path, folder)).as_posix()


def _below(image: Path, folder: Path) -> Path | None:
    """Return the label file of an image relative to a folder, or None if the image does not lie in it."""
    place = Path(os.path.abspath(image))
    base = Path(os.path.abspath(folder))
    return place.relative_to(base).with_suffix(".txt") if place.is_relative_to(base) else None
