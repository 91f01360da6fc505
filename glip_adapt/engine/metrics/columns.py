"""Predictions and truth in columns: what metrics compute with instead of one mapping per box.

Letters: N predictions, M boxes of the truth.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from glip_adapt.engine.metrics.protocol import Predictions

if TYPE_CHECKING:
    from glip_adapt.core.masks import Rle

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Flags = NDArray[np.bool_]
Rles = NDArray[np.object_]
"""Compressed run lengths of masks, as COCO has them."""


@dataclass(frozen=True, kw_only=True)
class Places:
    """Position of each image and each class by rising id; boxes are in a common cell if both are the same."""

    images: Mapping[int | str, int]
    classes: Mapping[int, int]

    @classmethod
    def of(cls, truth: Mapping[str, Any]) -> Places:
        """Return the positions of a COCO or LVIS document."""
        return cls(images=_positions(truth["images"]), classes=_positions(truth["categories"]))

    def cells(self, images: Integers, classes: Integers) -> Integers:
        """Return one number for each pair of image and class."""
        return classes * len(self.images) + images

    def cells_of(self, truth: Mapping[str, Any], key: str) -> Integers:
        """Return the cells of the category ids that the images of an LVIS document list under ``key``."""
        images, classes = self.images, self.classes
        listed = [(images[entry["id"]], classes[k]) for entry in truth["images"] for k in entry[key] if k in classes]
        pairs = np.array(listed, dtype=np.int64).reshape(-1, 2)
        return self.cells(pairs[:, 0], pairs[:, 1])


@dataclass(frozen=True, kw_only=True)
class Found:
    """Predictions.

    Attributes:
        images: (N,) positions of their images.
        classes: (N,) positions of their classes.
        boxes_xywh: (N, 4) left, top, width, height in pixels.
        scores: (N,).
        areas: (N,) square pixels, of the box; of the mask, where masks are compared.
        rles: (N,) masks, where masks are compared; else None.
    """

    images: Integers
    classes: Integers
    boxes_xywh: Floats
    scores: Floats
    areas: Floats
    rles: Rles | None = None

    @classmethod
    def read(cls, predictions: Predictions, places: Places) -> Found:
        """Return predictions in COCO result form as columns.

        Raises:
            ValueError: if one names an image or category that the truth does not have.
        """
        boxes_xywh = _boxes(predictions)
        return cls(
            images=_looked_up(predictions, "image_id", places.images),
            classes=_looked_up(predictions, "category_id", places.classes),
            boxes_xywh=boxes_xywh,
            scores=_column(entry["score"] for entry in predictions),
            areas=boxes_xywh[:, 2] * boxes_xywh[:, 3],
        )

    def with_masks(self, rles: Sequence[Rle]) -> Found:
        """Return the predictions with the mask of each, which are compared instead of boxes."""
        from glip_adapt.core.masks import areas  # boxes are scored without pycocotools

        return replace(self, areas=areas(rles), rles=_objects(rles))

    def __len__(self) -> int:
        return len(self.scores)

    def at(self, rows: Integers | Flags) -> Found:
        """Return some of the predictions."""
        return Found(**_rows_of(self, rows))

    def best(self, groups: Integers, limit: int) -> Flags:
        """Tell which predictions are among the ``limit`` best of their group; of equal scores the first are."""
        order = np.lexsort((-self.scores, groups))
        kept = np.empty(len(self), dtype=bool)
        kept[order] = ranks(groups[order]) < limit
        return kept


@dataclass(frozen=True, kw_only=True)
class Truth:
    """True boxes.

    Attributes:
        images: (M,) positions of their images.
        classes: (M,) positions of their classes.
        boxes_xywh: (M, 4) left, top, width, height in pixels.
        areas: (M,) square pixels as stated, of the object and not of its box.
        ignored: (M,) whether a box need not be found.
        crowd: (M,) whether a box stands for several objects; any number of predictions may match it.
        countable: (M,) whether a match counts; pycocotools reads one with a box whose id is 0 as none.
        rles: (M,) masks, where masks are compared; else None.
    """

    images: Integers
    classes: Integers
    boxes_xywh: Floats
    areas: Floats
    ignored: Flags
    crowd: Flags
    countable: Flags
    rles: Rles | None = None

    @classmethod
    def read(cls, annotations: Sequence[Mapping[str, Any]], places: Places, *, ignored: str, has_crowds: bool) -> Truth:
        """Return annotations in COCO form as columns.

        Args:
            annotations: of a COCO or LVIS document.
            places: of the same document.
            ignored: key of an annotation that tells whether its box need not be found.
            has_crowds: whether ``iscrowd`` marks boxes of several objects.
        """
        flags = [bool(entry.get(ignored)) for entry in annotations]
        crowds = [has_crowds and bool(entry.get("iscrowd")) for entry in annotations]
        return cls(
            images=_looked_up(annotations, "image_id", places.images),
            classes=_looked_up(annotations, "category_id", places.classes),
            boxes_xywh=_boxes(annotations),
            areas=_column(entry["area"] for entry in annotations),
            ignored=np.array(flags, dtype=bool),
            crowd=np.array(crowds, dtype=bool),
            countable=np.array([entry["id"] != 0 for entry in annotations], dtype=bool),
        )

    def with_masks(self, rles: Sequence[Rle]) -> Truth:
        """Return the boxes with the mask of each, which are compared instead of boxes."""
        return replace(self, rles=_objects(rles))

    def __len__(self) -> int:
        return len(self.areas)

    def at(self, rows: Integers | Flags) -> Truth:
        """Return some of the boxes."""
        return Truth(**_rows_of(self, rows))


def ranks(groups: NDArray[Any]) -> Integers:
    """Return the place of each entry in its group, from 0; equal entries of ``groups`` (N,) stand together."""
    starts = np.flatnonzero(np.append(True, groups[1:] != groups[:-1])[: len(groups)])
    sizes = np.diff(np.append(starts, len(groups)))
    return np.arange(len(groups)) - np.repeat(starts, sizes)


def _positions(entries: Sequence[Mapping[str, Any]]) -> dict[Any, int]:
    ids = sorted({entry["id"] for entry in entries}, key=lambda key: (isinstance(key, str), key))
    return {key: position for position, key in enumerate(ids)}


def _looked_up(entries: Sequence[Mapping[str, Any]], key: str, positions: Mapping[Any, int]) -> Integers:
    found = np.fromiter((positions.get(entry[key], -1) for entry in entries), dtype=np.int64, count=len(entries))
    if len(unknown := np.flatnonzero(found < 0)):
        raise ValueError(
            f"Entry {unknown[0]} is for {key} {entries[int(unknown[0])][key]!r}, which the truth does not have. Pass "
            "predictions about its images and classes."
        )
    return found


def _boxes(entries: Sequence[Mapping[str, Any]]) -> Floats:
    return _column(itertools.chain.from_iterable(entry["bbox"] for entry in entries)).reshape(-1, 4)


def _column(values: Iterable[float]) -> Floats:
    return np.fromiter(values, dtype=np.float64)


def _rows_of(columns: Found | Truth, rows: Integers | Flags) -> dict[str, Any]:
    return {name: None if column is None else column[rows] for name, column in vars(columns).items()}


def _objects(entries: Sequence[Any]) -> NDArray[np.object_]:
    """Return (N,) objects, which numpy does not look into."""
    column = np.empty(len(entries), dtype=object)
    column[:] = entries
    return column
