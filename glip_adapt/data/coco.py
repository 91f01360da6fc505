"""COCO files → ``Split``: contiguous labels start here, and category ids end here.

Behaviour of the public code that is kept (maskrcnn_benchmark/data/datasets/coco.py and modulated_coco.py): pictures in
the order of their ids; crowd boxes are no targets; target boxes are clipped to the picture, and those left without
width or height (so also boxes of at most one pixel) are dropped; a picture is fit for training when one of its boxes,
crowd or not, has both sides above one pixel (``Split.with_boxes``). The ground truth for scoring keeps everything that
the file states. EXIF rotation is ignored, as boxes are drawn on the stored pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from glip_adapt import boxes
from glip_adapt.data.check import declared_size, load_document, load_rgb
from glip_adapt.structures import SizeHW, Target


@dataclass(frozen=True)
class Annotation:
    """One box as the COCO file states it.

    Attributes:
        category_id: COCO's id, not a label.
        bbox_xywh: left, top, width, height in pixels.
        area: pixels, of the segmentation where the file has one.
        iscrowd: whether scoring ignores what falls into this region.
    """

    category_id: int
    bbox_xywh: tuple[float, float, float, float]
    area: float
    iscrowd: bool


@dataclass(frozen=True)
class ImageRecord:
    """One picture of a split.

    Attributes:
        image_id: the id in the COCO file.
        path: the picture; open it with ``load_rgb``.
        size_hw: declared (height, width) in pixels.
        target: what training aims at.
        annotations: what scoring compares with; empty where no file states more than ``target`` does.
    """

    image_id: int | str
    path: Path
    size_hw: SizeHW
    target: Target
    annotations: tuple[Annotation, ...] = ()


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
    """

    name: str
    records: tuple[ImageRecord, ...]
    classes: tuple[str, ...]
    category_ids: tuple[int, ...]
    annotation_file: Path
    source: str = "full"
    image_dir: Path | None = None

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
) -> Split:
    """Return the split that a COCO file describes, with labels 0..K-1 by rising category id.

    Args:
        annotation_file: COCO JSON.
        image_dir: folder that its file names are relative to.
        name: how records call the split.
        categories: id → name instead of the file's own categories.
        require_images: whether every picture must exist; sampling needs only the file.

    Raises:
        FileNotFoundError: if the annotation file or a picture is missing.
        ValueError: at the first other defect that ``check_split`` would list, except duplicate file names, duplicate
            annotation ids and boxes outside the picture, which leave the meaning of the split clear.
    """
    annotation_file, image_dir = Path(annotation_file), Path(image_dir)
    document = load_document(annotation_file, image_dir if require_images else None, categories)
    named = sorted((entry["id"], entry["name"]) for entry in document["categories"])
    label_of = {category_id: label for label, (category_id, _) in enumerate(named)}
    annotations: dict[int | str, list[Annotation]] = {entry["id"]: [] for entry in document["images"]}
    for entry in document["annotations"]:
        annotations[entry["image_id"]].append(_build_annotation(entry))
    records = []
    for entry in sorted(document["images"], key=lambda entry: entry["id"]):
        stated, path = tuple(annotations[entry["id"]]), image_dir / entry["file_name"]
        size_hw = declared_size(entry) or _stored_size(path)
        records.append(ImageRecord(entry["id"], path, size_hw, _build_target(stated, label_of, size_hw), stated))
    classes = tuple(category_name for _, category_name in named)
    return Split(name, tuple(records), classes, tuple(label_of), annotation_file, image_dir=image_dir)


def coco_ground_truth(split: Split) -> dict[str, Any]:
    """Return exactly this split as a COCO document, for scoring by pycocotools or for writing to a file.

    Crowd regions stay in. Annotations are numbered anew from 1: pycocotools takes a match with id 0 for none.
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for record in split.records:
        height, width = record.size_hw
        path = record.path
        if split.image_dir is not None and path.is_relative_to(split.image_dir):
            path = path.relative_to(split.image_dir)
        images.append({"id": record.image_id, "file_name": path.as_posix(), "height": height, "width": width})
        for annotation in split.annotations(record):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": record.image_id,
                    "category_id": annotation.category_id,
                    "bbox": list(annotation.bbox_xywh),
                    "area": annotation.area,
                    "iscrowd": int(annotation.iscrowd),
                }
            )
    categories = [{"id": key, "name": name} for key, name in zip(split.category_ids, split.classes, strict=True)]
    return {"images": images, "annotations": annotations, "categories": categories}


def _stored_size(path: Path) -> SizeHW:
    image = load_rgb(path)
    return image.height, image.width


def _build_annotation(entry: dict[str, Any]) -> Annotation:
    x, y, w, h = map(float, entry["bbox"])
    area = entry.get("area")
    return Annotation(
        entry["category_id"], (x, y, w, h), w * h if area is None else float(area), bool(entry.get("iscrowd"))
    )


def _build_target(annotations: tuple[Annotation, ...], label_of: dict[int, int], size_hw: SizeHW) -> Target:
    """Return what public training aims at: no crowd, clipped, nothing without width or height."""
    single = [annotation for annotation in annotations if not annotation.iscrowd]
    boxes_xywh = torch.tensor([annotation.bbox_xywh for annotation in single], dtype=torch.float32).reshape(-1, 4)
    labels = torch.tensor([label_of[annotation.category_id] for annotation in single], dtype=torch.int64)
    boxes_xyxy = boxes.clip(boxes.xywh_to_xyxy(boxes_xywh), size_hw)
    solid = (boxes_xyxy[:, 2:] > boxes_xyxy[:, :2]).all(dim=1)
    return Target(boxes_xyxy[solid], labels[solid])
