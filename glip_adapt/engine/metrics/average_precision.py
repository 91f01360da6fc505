"""Average precision of boxes, or masks, over thresholds of overlap and ranges of area, for all images at once.

Predictions take boxes as in the public evaluators of COCO and LVIS: in falling order of score, each takes the free box
of its image and class that it overlaps most. What differs between the two, columns say.

Letters: N predictions, M boxes of the truth, C predictions that overlap some box enough, T thresholds of overlap,
R levels of recall, K classes, A ranges of area.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from glip_adapt.engine.metrics.columns import Flags, Floats, Found, Integers, Places, Rles, Truth, ranks

IOUS = np.linspace(0.5, 0.95, 10)
"""(T,) least overlaps of a hit."""
RECALLS = np.linspace(0, 1, 101)
"""(R,) levels of recall that precision is averaged over."""
AREAS = {"all": (0.0, 1e10), "small": (0.0, 32.0**2), "medium": (32.0**2, 96.0**2), "large": (96.0**2, 1e10)}
"""Ranges of area in square pixels, both ends included."""

_PAIRS = 2**20  # compared at a time


@dataclass(frozen=True, kw_only=True)
class Matched:
    """Predictions by class and falling score, and what they hit.

    Attributes:
        classes: (N,) positions of classes, rising.
        images: (N,) positions of images.
        scores: (N,).
        outside: (N, A) whether a prediction that hits nothing is no false alarm in a range of area.
        candidate: (N,) row in the next two; -1 for a prediction that overlaps no box enough at any threshold.
        hits: (C, T, A) whether it hits a box.
        ignored: (C, T, A) whether that box need not be found.
        truth_classes: (M,) positions of classes.
        truth_images: (M,) positions of images.
        wanted: (M, A) whether a box is to be found.
        class_count: K.
    """

    classes: Integers
    images: Integers
    scores: Floats
    outside: Flags
    candidate: Integers
    hits: Flags
    ignored: Flags
    truth_classes: Integers
    truth_images: Integers
    wanted: Flags
    class_count: int

    def redrawn(self, images: Integers) -> Matched:
        """Return the same for a list of images, in which one may stand several times."""
        rows, position = _rows_of(self.images, images)
        order = np.lexsort((position, -self.scores[rows], self.classes[rows]))
        rows, position = rows[order], position[order]
        boxes, _ = _rows_of(self.truth_images, images)
        return replace(
            self, classes=self.classes[rows], images=position, scores=self.scores[rows], outside=self.outside[rows],
            candidate=self.candidate[rows], truth_classes=self.truth_classes[boxes],
            truth_images=self.truth_images[boxes], wanted=self.wanted[boxes],
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Precision:
    """Precision at each level of recall, and recall in the end; -1 in classes without a box to find.

    Attributes:
        precision: (T, R, K, A).
        recall: (T, K, A).
    """

    precision: Floats
    recall: Floats


def match(
    found: Found, truth: Truth, places: Places, areas: Sequence[str] = tuple(AREAS), lenient: Flags | None = None
) -> Matched:
    """Match predictions with true boxes.

    Args:
        found: predictions that count, in the order that decides between equal scores of an image.
        truth: boxes; with masks if the predictions have some.
        places: of the document that both are about.
        areas: names in ``AREAS``.
        lenient: (N,) whether a prediction that hits nothing is no false alarm; by default each is one.
    """
    order = np.lexsort((found.images, -found.scores, found.classes))
    found = found.at(order)
    ranges = np.array([AREAS[name] for name in areas])
    outside = _outside(found.areas, ranges)
    if lenient is not None:
        outside |= lenient[order, None]
    ignored = _outside(truth.areas, ranges) | truth.ignored[:, None]
    rows, hits, ignored_hits = _take(found, truth, ignored, places)
    candidate = np.full(len(found), -1, dtype=np.int64)
    candidate[rows] = np.arange(len(rows))
    return Matched(
        classes=found.classes, images=found.images, scores=found.scores, outside=outside, candidate=candidate,
        hits=hits, ignored=ignored_hits, truth_classes=truth.classes, truth_images=truth.images, wanted=~ignored,
        class_count=len(places.classes),
    )  # fmt: skip


def accumulate(matched: Matched) -> Precision:
    """Return precision over recall, and recall, per class and range of area."""
    areas = matched.outside.shape[1]
    precision = np.full((len(IOUS), len(RECALLS), matched.class_count, areas), -1.0)
    recall = np.full((len(IOUS), matched.class_count, areas), -1.0)
    wanted = np.zeros((matched.class_count, areas), dtype=np.int64)
    np.add.at(wanted, matched.truth_classes, matched.wanted)
    bounds = np.searchsorted(matched.classes, np.arange(matched.class_count + 1))
    for k in np.flatnonzero(wanted.any(axis=1)):
        rows = slice(bounds[k], bounds[k + 1])
        curve, reached = _curve(matched, rows, wanted[k])
        defined = wanted[k] > 0
        precision[:, :, k, defined] = curve[..., defined]
        recall[:, k, defined] = reached[:, defined]
    return Precision(precision=precision, recall=recall)


def mean(values: Floats) -> float | None:
    """Return the mean of the defined values; None if there are none."""
    defined = values[values > -1]
    return float(defined.mean()) if len(defined) else None


def _take(found: Found, truth: Truth, ignored: Flags, places: Places) -> tuple[Integers, Flags, Flags]:
    """Return rows of candidates (C,), whether they hit (C, T, A), and whether what they hit is ignored (C, T, A).

    The n-th candidates of all cells choose together, since cells have no box in common.
    """
    row, box, iou = (np.concatenate(parts) for parts in zip(*_overlapping(found, truth, places), strict=True))
    rows, place = np.unique(row, return_inverse=True)
    cells = places.cells(found.images[rows], found.classes[rows])
    by_cell = np.argsort(cells, kind="stable")  # scores fall in each
    turn = np.empty(len(rows), dtype=np.int64)
    turn[by_cell] = ranks(cells[by_cell])
    # Best overlaps last, and of equal ones the last box, as the public evaluators choose.
    order = np.lexsort((box, iou, place, turn[place]))
    place, box = place[order], box[order]
    near = np.searchsorted(IOUS, iou[order], side="right")[:, None] > np.arange(len(IOUS))  # (P, T)
    shape = (len(IOUS), ignored.shape[1])
    free = np.ones((len(truth), *shape), dtype=bool)
    hits, ignored_hits = np.zeros((2, len(rows), *shape), dtype=bool)
    turns = np.searchsorted(turn[place], np.arange(turn.max(initial=-1) + 2))
    for first, last in itertools.pairwise(turns):
        boxes, count = box[first:last], last - first
        starts = np.flatnonzero(ranks(place[first:last]) == 0)
        value = np.arange(1, count + 1)[:, None] + count * ~ignored[boxes]  # a box to be found comes before others
        value = np.where(free[boxes] & near[first:last, :, None], value[:, None], 0)
        best = np.maximum.reduceat(value, starts, axis=0)
        who, threshold, area = np.nonzero(best)
        chosen = boxes[(best[who, threshold, area] - 1) % count]
        free[chosen, threshold, area] = truth.crowd[chosen]
        taker = place[first:last][starts[who]]
        hits[taker, threshold, area] = truth.countable[chosen]
        ignored_hits[taker, threshold, area] = ignored[chosen, area]
    return rows, hits, ignored_hits


def _overlapping(found: Found, truth: Truth, places: Places) -> Iterator[tuple[Integers, Integers, Floats]]:
    """Yield rows of predictions, rows of boxes, and overlaps, of pairs in one cell that overlap enough for a hit."""
    yield np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64), np.zeros(0)
    cells, of_truth = (places.cells(boxes.images, boxes.classes) for boxes in (found, truth))
    by_cell = np.argsort(of_truth, kind="stable")
    starts, ends = (np.searchsorted(of_truth[by_cell], cells, side=side) for side in ("left", "right"))
    rows = np.flatnonzero(ends > starts)
    counts = (ends - starts)[rows]
    for block in np.split(rows, np.flatnonzero(np.diff(np.cumsum(counts) // _PAIRS)) + 1):
        count = (ends - starts)[block]
        row = np.repeat(block, count)
        within = np.arange(len(row)) - np.repeat(np.cumsum(count) - count, count)
        box = by_cell[starts[row] + within]
        if found.rles is None or truth.rles is None:
            iou = _iou(found.boxes_xywh[row], truth.boxes_xywh[box], truth.crowd[box])
        else:
            iou = _mask_iou(found.rles, truth.rles, truth.crowd, row, box, cells[row])
        enough = iou >= IOUS[0]
        yield row[enough], box[enough], iou[enough]


def _iou(found_xywh: Floats, truth_xywh: Floats, crowd: Flags) -> Floats:
    """Return the overlap of each pair (P,); with a crowd region, as a share of the prediction alone."""
    starts = np.maximum(found_xywh[:, :2], truth_xywh[:, :2])
    ends = np.minimum(found_xywh[:, :2] + found_xywh[:, 2:], truth_xywh[:, :2] + truth_xywh[:, 2:])
    sides = np.maximum(ends - starts, 0.0)
    shared = sides[:, 0] * sides[:, 1]
    area = found_xywh[:, 2] * found_xywh[:, 3]
    union = np.where(crowd, area, area + truth_xywh[:, 2] * truth_xywh[:, 3] - shared)
    return np.divide(shared, union, out=np.zeros_like(shared), where=shared > 0)


def _mask_iou(found: Rles, truth: Rles, crowd: Flags, row: Integers, box: Integers, cell: Integers) -> Floats:
    """Return the overlap of the masks of each pair (P,): all of a cell with all, since they are decoded once a call."""
    from glip_adapt.core.masks import overlaps  # boxes are scored without pycocotools

    iou = np.empty(len(row))
    by_cell = np.argsort(cell, kind="stable")
    for pairs in np.split(by_cell, np.flatnonzero(np.diff(cell[by_cell])) + 1):
        (rows, of_row), (boxes, of_box) = (np.unique(column[pairs], return_inverse=True) for column in (row, box))
        iou[pairs] = overlaps(found[rows].tolist(), truth[boxes].tolist(), crowd[boxes].tolist())[of_row, of_box]
    return iou


def _curve(matched: Matched, rows: slice, wanted: Integers) -> tuple[Floats, Floats]:
    """Return precision (T, R, A) and recall (T, A) of one class; ``wanted`` (A,) boxes are to be found.

    Precision is counted at candidates alone: elsewhere it only falls.
    """
    candidate, outside = matched.candidate[rows], matched.outside[rows]
    at = np.flatnonzero(candidate >= 0)
    if not len(at):
        return np.zeros((len(IOUS), len(RECALLS), len(wanted))), np.zeros((len(IOUS), len(wanted)))
    alarms = np.cumsum(~outside & (candidate < 0)[:, None], axis=0)[at]  # of those that are no candidates
    hits, ignored = matched.hits[candidate[at]], matched.ignored[candidate[at]]
    counted = ~(ignored | (~hits & outside[at][:, None]))
    found = np.cumsum(hits & ~ignored, axis=0)
    total = np.cumsum(counted, axis=0) + alarms[:, None]
    precision = found / (total + np.spacing(1))
    best = np.maximum.accumulate(precision[::-1], axis=0)[::-1]  # at this recall or a higher one
    lines = np.moveaxis(best, 0, -1)[np.moveaxis(hits & ~ignored, 0, -1)]  # of all thresholds and areas in turn
    counts = found[-1]
    firsts = (np.cumsum(counts) - counts.ravel()).reshape(counts.shape)
    needed = np.stack([_needed(int(count)) for count in wanted], axis=-1)  # (R, A)
    reached = needed <= counts[:, None]
    place = np.where(reached, firsts[:, None] + needed - 1, 0)
    curve = np.where(reached, lines[place], 0.0) if len(lines) else np.zeros(place.shape)
    return curve, counts / np.maximum(wanted, 1)


def _needed(wanted: int) -> Integers:
    """Return how many hits reach each level of recall (R,), at least one."""
    return np.maximum(np.searchsorted(np.arange(wanted + 1) / max(wanted, 1), RECALLS), 1)


def _outside(areas: Floats, ranges: Floats) -> Flags:
    """Return whether areas (N,) lie outside of ranges (A, 2)."""
    return (areas[:, None] < ranges[:, 0]) | (areas[:, None] > ranges[:, 1])


def _rows_of(images: Integers, drawn: Integers) -> tuple[Integers, Integers]:
    """Return the rows that belong to the drawn images, and which draw each is of."""
    order = np.argsort(images, kind="stable")
    starts, ends = (np.searchsorted(images[order], drawn, side=side) for side in ("left", "right"))
    position = np.repeat(np.arange(len(drawn)), ends - starts)
    within = np.arange(len(position)) - np.repeat(np.cumsum(ends - starts) - (ends - starts), ends - starts)
    return order[starts[position] + within], position
