"""COCO files → ``Split``: contiguous labels start here, and category ids end here.

Behaviour of the public code that is kept (maskrcnn_benchmark/data/datasets/coco.py and modulated_coco.py): pictures in
the order of their ids; crowd boxes are no targets; target boxes are clipped to the picture, and those left without
width or height (so also boxes of at most one pixel) are dropped; a picture is fit for training when one of its boxes,
crowd or not, has both sides above one pixel (``Split.with_boxes``). The ground truth for scoring keeps everything that
the file states.

EXIF orientation, which the public code ignores: where the file states the size of the stored pixels, the tag is left
alone; otherwise the picture is turned, as people saw it when they drew the boxes.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image

from glip_adapt.core import boxes
from glip_adapt.core.structures import SizeHW, Target
from glip_adapt.data.check import load_document
from glip_adapt.data.entries import area_of, box_of, declared_size, is_outside, picture_path, root_category
from glip_adapt.data.images import Header, load_rgb, read_header

logger = logging.getLogger(__name__)

_AMBIGUOUS = (
    "are turned by their EXIF orientation, and their size does not tell whether boxes were drawn before or after that"
)
_NOT_APPLIED = (
    "have an EXIF orientation that is not applied, as the annotation file states the size of the stored pixels; but "
    "boxes leave the picture, as if drawn on the turned one"
)
_APPLIED = "are turned by their EXIF orientation, as the annotation file states no size"

AnnotationIds = Literal["renumbered", "as_in_file"]


@dataclass(frozen=True)
class Annotation:
    """One box as the COCO file states it.

    Attributes:
        category_id: COCO's id, not a label.
        bbox_xywh: left, top, width, height in pixels.
        area: pixels, of the segmentation where the file has one.
        iscrowd: whether scoring ignores what falls into this region.
        annotation_id: the id in the file, if it has one.
    """

    category_id: int
    bbox_xywh: tuple[float, float, float, float]
    area: float
    iscrowd: bool
    annotation_id: int | str | None = None


@dataclass(frozen=True)
class ImageRecord:
    """One picture of a split.

    Attributes:
        image_id: the id in the COCO file.
        path: the picture; open it with ``load``.
        size_hw: (height, width) in pixels that the file declares; where it does not, that of the upright picture.
        target: what training aims at.
        annotations: what scoring compares with; empty where no file states more than ``target`` does.
    """

    image_id: int | str
    path: Path
    size_hw: SizeHW
    target: Target
    annotations: tuple[Annotation, ...] = ()

    def load(self) -> Image.Image:
        """Return the picture as RGB, turned as its boxes are; errors as ``load_rgb``."""
        return load_rgb(self.path, self.size_hw)

    @functools.cached_property
    def header(self) -> Header:
        """What the start of the picture file says; read once, with errors as ``read_header``."""
        header = read_header(self.path, self.size_hw)
        if header.is_ambiguous:
            _warn_once(self.path.parent, _AMBIGUOUS)
        elif header.applied != header.orientation and any(
            is_outside(a.bbox_xywh, self.size_hw) for a in self.annotations
        ):
            _warn_once(self.path.parent, _NOT_APPLIED)
        return header


@dataclass(frozen=True)
class Split:
    """Pictures with boxes, such as the training part of a dataset.

    Attributes:
        name: for people and records, for example ``"Raccoon/train"``.
        records: the pictures; by rising image id, or in the order in which a sampler picked them.
        classes: name of label 0..K-1.
        category_ids: COCO category id of label 0..K-1.
        annotation_file: the COCO file that the boxes come from.
        source: ``"full"``, ``"sampled"``, or ``"official FILE"`` for a prepared few-shot file.
        image_dir: folder that file names in ``annotation_file`` are relative to.
        aliases: other names of label 0..K-1 by which a prompt may word them; empty where there are none.
        annotation_ids: the numbers that boxes have while they are scored. ``"as_in_file"`` is what the public evaluator
            does, where a box with id 0 can never be found; see ``coco_ground_truth``.
    """

    name: str
    records: tuple[ImageRecord, ...]
    classes: tuple[str, ...]
    category_ids: tuple[int, ...]
    annotation_file: Path
    source: str = "full"
    image_dir: Path | None = None
    aliases: tuple[str, ...] = ()
    annotation_ids: AnnotationIds = "renumbered"

    def __len__(self) -> int:
        return len(self.records)

    def few_shot(self, shots: int, seed: int) -> Split:
        """Return the ``shots``-shot subset for ``seed``; see ``fewshot.few_shot_split``."""
        # Not at the top: that file reads official subsets through load_split, so it imports this one.
        from glip_adapt.data.fewshot import few_shot_split

        return few_shot_split(self, shots, seed)

    def with_boxes(self) -> Split:
        """Return the split without the pictures that public training leaves out: no box wider and higher than 1 px."""
        kept = (r for r in self.records if any(min(a.bbox_xywh[2:]) > 1 for a in self.annotations(r)))
        return replace(self, records=tuple(kept))

    def annotations(self, record: ImageRecord) -> tuple[Annotation, ...]:
        """Return the boxes of one picture of this split as COCO sees them, crowd regions included."""
        if record.annotations:
            return record.annotations
        boxes_xywh = boxes.xyxy_to_xywh(record.target.boxes_xyxy).tolist()
        return tuple(
            Annotation(self.category_ids[label], (x, y, w, h), w * h, False)
            for label, (x, y, w, h) in zip(record.target.labels.tolist(), boxes_xywh, strict=True)
        )


def load_split(
    annotation_file: Path,
    image_dir: Path,
    name: str,
    *,
    categories: Mapping[int, str] | None = None,
    require_images: bool = True,
    keep_root: bool = False,
) -> Split:
    """Return the split that a COCO file describes, with labels 0..K-1 by rising category id.

    Args:
        annotation_file: COCO JSON.
        image_dir: folder that its file names are relative to.
        name: how records call the split.
        categories: id → name instead of the file's own categories.
        require_images: whether every picture must exist; sampling needs only the file.
        keep_root: whether a category that only heads the others, and has no box here, is a class all the same.

    Raises:
        FileNotFoundError: if the annotation file or a picture is missing.
        ValueError: at the first other defect that leaves the meaning of the file open; see ``load_document``.
    """
    annotation_file, image_dir = Path(annotation_file), Path(image_dir)
    document = load_document(annotation_file, image_dir if require_images else None, categories)
    root = None if keep_root else root_category(document)
    named = sorted((e["id"], e["name"]) for e in document["categories"] if root is None or e["id"] != root[0])
    label_of = {category_id: label for label, (category_id, _) in enumerate(named)}
    annotations: dict[int | str, list[Annotation]] = {entry["id"]: [] for entry in document["images"]}
    for entry in document["annotations"]:
        if (box := box_of(entry)) is not None:
            annotations[entry["image_id"]].append(_build_annotation(entry, box))
    records = []
    for entry in sorted(document["images"], key=lambda entry: entry["id"]):
        stated, path = tuple(annotations[entry["id"]]), picture_path(image_dir, entry["file_name"])
        size_hw = declared_size(entry) or _upright_size(path)
        records.append(ImageRecord(entry["id"], path, size_hw, _build_target(stated, label_of, size_hw), stated))
    classes = tuple(category_name for _, category_name in named)
    return Split(name, tuple(records), classes, tuple(label_of), annotation_file, image_dir=image_dir)


def coco_ground_truth(split: Split) -> dict[str, Any]:
    """Return exactly this split as a COCO document, for scoring by pycocotools or for writing to a file.

    Crowd regions stay in. Annotations are numbered from 1, as pycocotools takes a match with id 0 for none; or, where
    the split asks for it, as in the file.

    Raises:
        ValueError: if they are to be numbered as in the file, and one has no whole number there.
    """
    images: list[dict[str, Any]] = []
    annotations: list[tuple[int | str, Annotation]] = []
    for record in split.records:
        height, width = record.size_hw
        path = record.path
        if split.image_dir is not None and path.is_relative_to(split.image_dir):
            path = path.relative_to(split.image_dir)
        images.append({"id": record.image_id, "file_name": path.as_posix(), "height": height, "width": width})
        annotations += [(record.image_id, annotation) for annotation in split.annotations(record)]
    categories = [{"id": key, "name": name} for key, name in zip(split.category_ids, split.classes, strict=True)]
    numbered = _numbered(annotations, split.annotation_ids, split.annotation_file)
    return {"images": images, "annotations": numbered, "categories": categories}


def load_ground_truth(annotation_file: Path, annotation_ids: AnnotationIds = "renumbered") -> dict[str, Any]:
    """Return a COCO file for scoring by pycocotools; it needs neither pictures nor their sizes.

    Args:
        annotation_file: COCO JSON.
        annotation_ids: the numbers that boxes have while they are scored, as in ``Split``.

    Raises:
        FileNotFoundError, ValueError: as ``load_split``; ValueError also as ``coco_ground_truth``.
    """
    document = load_document(annotation_file, None, need_sizes=False)
    annotations = [
        (entry["image_id"], _build_annotation(entry, box))
        for entry in document["annotations"]
        if (box := box_of(entry)) is not None
    ]
    return document | {"annotations": _numbered(annotations, annotation_ids, annotation_file)}


def _upright_size(path: Path) -> SizeHW:
    """Return the size of a picture whose annotation file does not state it."""
    header = read_header(path)
    if header.orientation != 1:
        _warn_once(path.parent, _APPLIED)
    return header.size_hw


@functools.cache
def _warn_once(folder: Path, what: str) -> None:
    """Say once for each folder what holds for some of its pictures."""
    logger.warning(f"Pictures in {folder} {what}. `glip-adapt data check` lists them; look at some of their boxes.")


def _build_annotation(entry: dict[str, Any], box: list[float]) -> Annotation:
    x, y, w, h = box
    is_crowd = entry.get("iscrowd") in (1, True)
    return Annotation(entry["category_id"], (x, y, w, h), area_of(entry, box), is_crowd, entry.get("id"))


def _numbered(
    annotations: Sequence[tuple[int | str, Annotation]], annotation_ids: AnnotationIds, file: Path
) -> list[dict[str, Any]]:
    """Return annotations, each with the id of its picture, as COCO entries."""
    entries = []
    for position, (image_id, annotation) in enumerate(annotations, start=1):
        number = annotation.annotation_id if annotation_ids == "as_in_file" else position
        if not isinstance(number, int):
            raise ValueError(
                f"{file}: a box has the id {number!r}, but scoring by the ids of the file needs whole numbers. Give "
                "each box one, or score with renumbered ids."
            )
        entry: dict[str, Any] = {"id": number, "image_id": image_id, "category_id": annotation.category_id}
        entry |= {"bbox": list(annotation.bbox_xywh), "area": annotation.area, "iscrowd": int(annotation.iscrowd)}
        entries.append(entry)
    return entries


def _build_target(annotations: tuple[Annotation, ...], label_of: dict[int, int], size_hw: SizeHW) -> Target:
    """Return what public training aims at: no crowd, clipped, nothing without width or height."""
    single = [annotation for annotation in annotations if not annotation.iscrowd]
    boxes_xywh = torch.tensor([annotation.bbox_xywh for annotation in single], dtype=torch.float32).reshape(-1, 4)
    labels = torch.tensor([label_of[annotation.category_id] for annotation in single], dtype=torch.int64)
    boxes_xyxy = boxes.clip(boxes.xywh_to_xyxy(boxes_xywh), size_hw)
    solid = (boxes_xyxy[:, 2:] > boxes_xyxy[:, :2]).all(dim=1)
    return Target(boxes_xyxy[solid], labels[solid])
