"""Detections and datasets for tools that show where a detector errs: FiftyOne and supervision."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from glip_adapt.core.sizes import SizeHW
from glip_adapt.core.structures import Detections
from glip_adapt.data.split import ImageRecord, Split

if TYPE_CHECKING:
    import fiftyone
    import supervision

TRUTH, FOUND = "ground_truth", "predictions"
"""Fields of a sample of FiftyOne."""


def to_fiftyone(detections: Detections, size_hw: SizeHW) -> fiftyone.Detections:
    """Return detections as ``fiftyone.Detections``: labels, boxes as shares of the image, confidences, and masks.

    A mask is cut to its box, as FiftyOne holds it. No database is needed.

    Args:
        detections: of one image, from ``model.predict`` or ``segment``.
        size_hw: (height, width) of the image in pixels.

    Raises:
        ModuleNotFoundError: if fiftyone is not installed.
    """
    fo = _import_fiftyone()
    columns = (detections.boxes_xyxy, detections.scores, detections.labels)
    masks = detections.masks or (None,) * len(detections)
    rows = []
    for edges, score, label, mask in zip(*(column.tolist() for column in columns), masks, strict=True):
        left, top, right, bottom = edges
        options: dict[str, Any] = {"confidence": score}
        if mask is not None:
            rows_px, columns_px = _pixels(top, bottom, size_hw[0]), _pixels(left, right, size_hw[1])
            options["mask"] = mask.to_array()[rows_px, columns_px]
        box = _shares((left, top, right - left, bottom - top), size_hw)
        rows.append(fo.Detection(label=detections.class_names[label], bounding_box=box, **options))
    return fo.Detections(detections=rows)


def to_fiftyone_samples(split: Split, found: Sequence[Detections] | None = None) -> list[fiftyone.Sample]:
    """Return a split as samples of FiftyOne: ``fiftyone.Dataset("name").add_samples(to_fiftyone_samples(split))``.

    The truth is in the field ``ground_truth``, crowd regions with ``iscrowd``; the detections are in ``predictions``.
    ``dataset.evaluate_detections("predictions", gt_field="ground_truth", eval_key="eval")`` then finds hits, misses and
    false alarms, which the app shows.

    Args:
        split: images with boxes.
        found: the detections of each record, in their order; by default there is no such field.

    Raises:
        ModuleNotFoundError: if fiftyone is not installed.
        ValueError: if there are not as many detections as images.
    """
    fo = _import_fiftyone()
    if found is not None and len(found) != len(split):
        raise ValueError(
            f"Expected detections for each of the {len(split)} images of {split.name}, got {len(found)}. Detect in "
            "`[record.load() for record in split.records]`."
        )
    samples = []
    for position, record in enumerate(split.records):
        sample = fo.Sample(filepath=str(record.path.absolute()))
        sample[TRUTH] = fo.Detections(detections=_truth(fo, split, record))
        if found is not None:
            sample[FOUND] = to_fiftyone(found[position], record.size_hw)
        samples.append(sample)
    return samples


def to_supervision_dataset(split: Split) -> supervision.DetectionDataset:
    """Return a split as ``supervision.DetectionDataset``; crowd regions, which it has not, are left out.

    ``supervision.ConfusionMatrix.from_detections`` and ``supervision.metrics`` compare it with detections from
    ``to_supervision``.

    Raises:
        ModuleNotFoundError: if supervision is not installed.
    """
    try:
        import supervision
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "to_supervision_dataset needs supervision: pip install 'glip-adapt[supervision]'."
        ) from error
    label_of = {category_id: label for label, category_id in enumerate(split.category_ids)}
    annotations = {}
    for record in split.records:
        single = [entry for entry in split.annotations_of(record) if not entry.iscrowd]
        boxes_xywh = np.array([entry.bbox_xywh for entry in single], dtype=np.float32).reshape(-1, 4)
        labels = np.array([label_of[entry.category_id] for entry in single], dtype=np.int64)
        edges = np.concatenate([boxes_xywh[:, :2], boxes_xywh[:, :2] + boxes_xywh[:, 2:]], axis=1)
        names = np.array([split.classes[label] for label in labels], dtype=str)
        annotations[str(record.path)] = supervision.Detections(xyxy=edges, class_id=labels, data={"class_name": names})
    return supervision.DetectionDataset(classes=list(split.classes), images=list(annotations), annotations=annotations)


def _import_fiftyone() -> Any:
    try:
        import fiftyone
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("FiftyOne is not installed: pip install 'glip-adapt[fiftyone]'.") from error
    return fiftyone


def _truth(fo: Any, split: Split, record: ImageRecord) -> list[Any]:
    name_of = dict(zip(split.category_ids, split.classes, strict=True))
    return [
        fo.Detection(
            label=name_of[entry.category_id],
            bounding_box=_shares(entry.bbox_xywh, record.size_hw),
            **({"iscrowd": True} if entry.iscrowd else {}),
        )
        for entry in split.annotations_of(record)
    ]


def _shares(box_xywh: Sequence[float], size_hw: SizeHW) -> list[float]:
    """Return left, top, width and height as shares of the image."""
    height, width = size_hw
    return [value / side for value, side in zip(box_xywh, (width, height) * 2, strict=True)]


def _pixels(start: float, end: float, side: int) -> slice:
    """Return the pixels from one edge to another, at least one."""
    first = min(max(0, round(start)), side - 1)
    return slice(first, max(first + 1, round(end)))
