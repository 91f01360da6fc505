"""MOTA (CLEAR MOT, Bernardin and Stiefelhagen 2008) and HOTA (arXiv 2009.07736) of tracks, for tests of tracking."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from scipy.optimize import linear_sum_assignment

Boxes = Mapping[int, Sequence[float]]
LEAST_IOU = 0.5
LEAST_IOUS = np.arange(1, 20) / 20


@dataclass(frozen=True)
class TrackingScore:
    """Errors over all frames.

    Attributes:
        truth: number of true boxes.
        misses: true boxes without a found one.
        false_alarms: found boxes without a true one.
        switches: times that an object is found under another number than before.
    """

    truth: int
    misses: int
    false_alarms: int
    switches: int

    @property
    def mota(self) -> float:
        """One minus all errors by true boxes."""
        return 1 - (self.misses + self.false_alarms + self.switches) / self.truth


def score_tracks(found: Sequence[Boxes], truth: Sequence[Boxes]) -> TrackingScore:
    """Compare found and true boxes by track number, (left, top, right, bottom), frame by frame."""
    number_of: dict[int, int] = {}  # true → found, of the last frame in which the object was found
    misses = false_alarms = switches = 0
    for here, true in zip(found, truth, strict=True):
        pairs = {t: n for t, n in number_of.items() if t in true and n in here and _iou(true[t], here[n]) >= LEAST_IOU}
        rest_true = [t for t in true if t not in pairs]
        rest_here = [n for n in here if n not in pairs.values()]
        ious = np.array([[_iou(true[t], here[n]) for n in rest_here] for t in rest_true]).reshape(
            len(rest_true), len(rest_here)
        )
        for row, column in zip(
            *linear_sum_assignment(np.where(ious >= LEAST_IOU, ious, 0), maximize=True), strict=True
        ):
            if ious[row, column] >= LEAST_IOU:
                pairs[rest_true[row]] = rest_here[column]
        switches += sum(number_of.get(t, n) != n for t, n in pairs.items())
        misses += len(true) - len(pairs)
        false_alarms += len(here) - len(pairs)
        number_of |= pairs
    return TrackingScore(sum(map(len, truth)), misses, false_alarms, switches)


def hota(found: Sequence[Boxes], truth: Sequence[Boxes]) -> float:
    """Return the root of detection times association accuracy, averaged over least IoU 0.05, 0.1, … 0.95.

    As in the public code, a pair is chosen by its IoU times the share of their frames that two tracks agree in.
    """
    rows, columns = ({n: i for i, n in enumerate(sorted(set().union(*boxes)))} for boxes in (truth, found))
    of_true, of_found = (
        np.array([sum(n in boxes for boxes in frames) for n in places], dtype=np.float64)
        for frames, places in ((truth, rows), (found, columns))
    )
    if not rows or not columns:
        return float(not rows and not columns)
    frames = []
    agreed = np.zeros((len(rows), len(columns)))
    for here, true in zip(found, truth, strict=True):
        ious = np.zeros_like(agreed)
        for t, n in product(true, here):
            ious[rows[t], columns[n]] = _iou(true[t], here[n])
        either = ious.sum(0, keepdims=True) + ious.sum(1, keepdims=True) - ious
        agreed += np.divide(ious, either, out=np.zeros_like(ious), where=either > 0)
        frames.append(ious)
    alike = agreed / (of_true[:, None] + of_found - agreed)
    chosen = [(ious, linear_sum_assignment(ious * alike, maximize=True)) for ious in frames]
    values = []
    for least in LEAST_IOUS:
        hits = np.zeros_like(agreed)
        for ious, pairs in chosen:
            hits[pairs] += ious[pairs] >= least - 1e-9
        detected = hits.sum() / (of_true.sum() + of_found.sum() - hits.sum())
        associated = (hits * hits / (of_true[:, None] + of_found - hits)).sum() / max(1, hits.sum())
        values.append(np.sqrt(detected * associated))
    return float(np.mean(values))


def _iou(one: Sequence[float], other: Sequence[float]) -> float:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    shared = max(width, 0) * max(height, 0)
    areas = ((one[2] - one[0]) * (one[3] - one[1]), (other[2] - other[0]) * (other[3] - other[1]))
    return shared / (sum(areas) - shared)
