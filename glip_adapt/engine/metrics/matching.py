"""Match predictions with the truth at IoU 0.5: precision–recall curves, thresholds, confusion, errors per image.

Letters: K classes, M boxes of the truth, N predictions, P points of a curve.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from glip_adapt.engine.metrics.protocol import Predictions

IOU = 0.5
"""Least overlap of a hit."""
FALLBACK = 0.5
"""Threshold where no prediction hits anything."""

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class ImageMatches:
    """Truth and predictions of one image, and which prediction hits which box.

    Crowd regions, and predictions that match one, are left out.

    Attributes:
        image_id: as in the truth.
        truth_xywh: (M, 4) left, top, width, height in pixels.
        truth_labels: (M,) in 0..K-1.
        found_xywh: (N, 4) predicted boxes, best score first.
        found_labels: (N,) in 0..K-1.
        scores: (N,) in [0, 1].
        hit: (N,) row of the box of the same class that a prediction hits; -1 for a false alarm.
    """

    image_id: int | str
    truth_xywh: Floats
    truth_labels: Integers
    found_xywh: Floats
    found_labels: Integers
    scores: Floats
    hit: Integers

    @property
    def hits(self) -> Integers:
        """Rows of the predictions that hit a box."""
        return np.flatnonzero(self.hit >= 0)

    @property
    def false_alarms(self) -> Integers:
        """Rows of the predictions that hit none."""
        return np.flatnonzero(self.hit < 0)

    @property
    def misses(self) -> Integers:
        """Rows of the boxes that no prediction hits."""
        return np.setdiff1d(np.arange(len(self.truth_labels)), self.hit)


@dataclass(frozen=True, kw_only=True)
class Matches:
    """Matched images, in the order of the truth, and the names of label 0..K-1."""

    class_names: tuple[str, ...]
    images: tuple[ImageMatches, ...]

    def above(self, thresholds: Mapping[str, float]) -> Matches:
        """Keep predictions that score at least the threshold of their class.

        Raises:
            ValueError: if a class has no threshold.
        """
        lacking = [name for name in self.class_names if name not in thresholds]
        if lacking:
            raise ValueError(f"Expected a threshold for each class; {lacking} have none. Give the mapping all names.")
        least = np.array([thresholds[name] for name in self.class_names])
        return replace(
            self, images=tuple(_keep(image, image.scores >= least[image.found_labels]) for image in self.images)
        )


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Precision and recall of a class over the score threshold.

    Attributes:
        thresholds: (P,) the distinct scores of its predictions, highest first.
        precision: (P,) share of hits among the predictions that score at least the threshold.
        recall: (P,) share of boxes that these hit; zero where there is no box.
        boxes: number of boxes in the truth.
    """

    thresholds: Floats
    precision: Floats
    recall: Floats
    boxes: int

    @property
    def balanced(self) -> float | None:
        """The threshold with the best F1, of equal ones the highest; None without a hit."""
        if not self.recall.any():
            return None
        f1 = 2 * self.precision * self.recall / np.maximum(self.precision + self.recall, 1e-12)
        return float(self.thresholds[f1.argmax()])


def match(predictions: Predictions, truth: Mapping[str, Any]) -> Matches:
    """Match predictions with boxes of their class as COCO does, at IoU 0.5.

    In falling order of score, a prediction takes the box that it overlaps most of those that are free. So a higher
    threshold only removes matches: the others stay.

    Args:
        predictions: in COCO result form.
        truth: COCO document.

    Raises:
        ValueError: if a prediction names an image or category that the truth does not have.
    """
    label_of = {entry["id"]: label for label, entry in enumerate(truth["categories"])}
    boxes: dict[int | str, list[Mapping[str, Any]]] = {entry["id"]: [] for entry in truth["images"]}
    found: dict[int | str, list[Mapping[str, Any]]] = {key: [] for key in boxes}
    for entry in truth["annotations"]:
        boxes[entry["image_id"]].append(entry)
    for entry in predictions:
        if entry["image_id"] not in found or entry["category_id"] not in label_of:
            raise ValueError(
                f"A prediction is for image {entry['image_id']!r} and category {entry['category_id']!r}, which the "
                "truth does not have both. Pass predictions about these images and classes."
            )
        found[entry["image_id"]].append(entry)
    names = tuple(entry["name"] for entry in truth["categories"])
    images = tuple(_match_image(key, found[key], boxes[key], label_of) for key in boxes)
    return Matches(class_names=names, images=images)


def precision_recall(matches: Matches) -> tuple[Curve, ...]:
    """Return the precision–recall curve of each class."""
    labels, scores, is_hit = _pooled(matches)
    counts = _boxes_per_class(matches)
    return tuple(_curve(scores[labels == k], is_hit[labels == k], int(count)) for k, count in enumerate(counts))


def balanced_thresholds(matches: Matches) -> dict[str, float]:
    """Return the score threshold per class name that balances precision and recall: that of the best F1.

    Of equal ones, the highest. A class without a box or without a hit gets the best threshold of all classes together;
    where nothing is hit at all, 0.5.
    """
    _, scores, is_hit = _pooled(matches)
    together = _curve(scores, is_hit, int(_boxes_per_class(matches).sum())).balanced
    default = FALLBACK if together is None else together
    own = (curve.balanced for curve in precision_recall(matches))
    return {
        name: default if threshold is None else threshold
        for name, threshold in zip(matches.class_names, own, strict=True)
    }


def confusion(matches: Matches) -> Integers:
    """Return how often a box of each class is found as each class: (K + 1, K + 1), rows truth, columns predicted.

    The last row counts predictions on background, the last column boxes that are not found. Hits are on the diagonal.
    A prediction that hits no box of its class counts for a free box of another that it overlaps by IoU 0.5 or more.
    Apply the thresholds first: ``confusion(matches.above(thresholds))``.
    """
    classes = len(matches.class_names)
    counts = np.zeros((classes + 1, classes + 1), dtype=np.int64)
    for image in matches.images:
        alarms, missed = image.false_alarms, image.misses
        other = _take(_iou(image.found_xywh[alarms], image.truth_xywh[missed]))
        hit = image.hit.copy()
        hit[alarms[other >= 0]] = missed[other[other >= 0]]
        of_truth = np.append(image.truth_labels, classes)[hit]  # row -1 is the background
        np.add.at(counts, (of_truth, image.found_labels), 1)
        np.add.at(counts[:, classes], np.delete(image.truth_labels, hit[hit >= 0]), 1)
    return counts


def _match_image(
    image_id: int | str,
    predictions: Sequence[Mapping[str, Any]],
    annotations: Sequence[Mapping[str, Any]],
    label_of: Mapping[int, int],
) -> ImageMatches:
    found_xywh, found_labels = _columns(predictions, label_of)
    scores = np.array([entry["score"] for entry in predictions], dtype=np.float64)
    order = np.argsort(-scores, kind="stable")
    found_xywh, found_labels, scores = found_xywh[order], found_labels[order], scores[order]
    truth_xywh, truth_labels = _columns(annotations, label_of)
    is_crowd = np.array([bool(entry.get("iscrowd")) for entry in annotations], dtype=bool)
    crowd_xywh, crowd_labels = truth_xywh[is_crowd], truth_labels[is_crowd]
    truth_xywh, truth_labels = truth_xywh[~is_crowd], truth_labels[~is_crowd]
    same = found_labels[:, None] == truth_labels
    hit = _take(np.where(same, _iou(found_xywh, truth_xywh), 0.0))
    in_crowd = _iou(found_xywh, crowd_xywh, crowd=True) >= IOU
    ignored = (in_crowd & (found_labels[:, None] == crowd_labels)).any(axis=1) & (hit < 0)
    image = ImageMatches(
        image_id=image_id, truth_xywh=truth_xywh, truth_labels=truth_labels,
        found_xywh=found_xywh, found_labels=found_labels, scores=scores, hit=hit,
    )  # fmt: skip
    return _keep(image, ~ignored)


def _columns(entries: Sequence[Mapping[str, Any]], label_of: Mapping[int, int]) -> tuple[Floats, Integers]:
    """Return boxes (N, 4) and labels (N,) of COCO entries."""
    boxes_xywh = np.array([entry["bbox"] for entry in entries], dtype=np.float64).reshape(-1, 4)
    return boxes_xywh, np.array([label_of[entry["category_id"]] for entry in entries], dtype=np.int64)


def _keep(image: ImageMatches, kept: NDArray[np.bool_]) -> ImageMatches:
    """Return an image with some of its predictions."""
    return replace(
        image, found_xywh=image.found_xywh[kept], found_labels=image.found_labels[kept],
        scores=image.scores[kept], hit=image.hit[kept],
    )  # fmt: skip


def _iou(found_xywh: Floats, truth_xywh: Floats, crowd: bool = False) -> Floats:
    """Return the overlap (N, M) as COCO measures it: with a crowd region, as a share of the prediction alone."""
    starts = np.maximum(found_xywh[:, None, :2], truth_xywh[:, :2])
    ends = np.minimum((found_xywh[:, :2] + found_xywh[:, 2:])[:, None], truth_xywh[:, :2] + truth_xywh[:, 2:])
    shared = np.maximum(ends - starts, 0.0).prod(axis=-1)
    area = found_xywh[:, 2:].prod(axis=-1)[:, None]
    union = area if crowd else area + truth_xywh[:, 2:].prod(axis=-1) - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=shared > 0)


def _take(iou: Floats) -> Integers:
    """Return for each row of (N, M), in turn, the free column of the best overlap, or -1 below the least one."""
    taken = np.full(len(iou), -1, dtype=np.int64)
    free = iou.copy()
    for row in np.flatnonzero((iou >= IOU).any(axis=1)):
        best = free.shape[1] - 1 - free[row, ::-1].argmax()  # of equal ones the last, as COCO does
        if free[row, best] >= IOU:
            taken[row] = best
            free[:, best] = 0.0
    return taken


def _pooled(matches: Matches) -> tuple[Integers, Floats, NDArray[np.bool_]]:
    """Return labels, scores, and whether it is a hit, of all predictions together."""
    images = matches.images
    return (
        np.concatenate([image.found_labels for image in images] or [np.zeros(0, dtype=np.int64)]),
        np.concatenate([image.scores for image in images] or [np.zeros(0)]),
        np.concatenate([image.hit >= 0 for image in images] or [np.zeros(0, dtype=bool)]),
    )


def _boxes_per_class(matches: Matches) -> Integers:
    counts = np.zeros(len(matches.class_names), dtype=np.int64)
    for image in matches.images:
        np.add.at(counts, image.truth_labels, 1)
    return counts


def _curve(scores: Floats, is_hit: NDArray[np.bool_], boxes: int) -> Curve:
    order = np.argsort(-scores, kind="stable")
    scores, hits = scores[order], np.cumsum(is_hit[order])
    last = np.append(scores[1:] != scores[:-1], True)[: len(scores)]  # equal scores pass a threshold together
    precision = (hits / np.arange(1, len(scores) + 1))[last]
    return Curve(thresholds=scores[last], precision=precision, recall=hits[last] / max(boxes, 1), boxes=boxes)
