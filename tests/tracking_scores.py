"""MOTA of tracks (CLEAR MOT, Bernardin and Stiefelhagen 2008), for tests of tracking."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment

Boxes = Mapping[int, Sequence[float]]
LEAST_IOU = 0.5


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


def _iou(one: Sequence[float], other: Sequence[float]) -> float:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    shared = max(width, 0) * max(height, 0)
    areas = ((one[2] - one[0]) * (one[3] - one[1]), (other[2] - other[0]) * (other[3] - other[1]))
    return shared / (sum(areas) - shared)
