"""COCO AP of boxes, equal to that of pycocotools."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from glip_adapt.engine.metrics.average_precision import AREAS, IOUS, Matched, accumulate, match, mean
from glip_adapt.engine.metrics.columns import Found, Places, Truth
from glip_adapt.engine.metrics.names import distinct_names
from glip_adapt.engine.metrics.protocol import Predictions, Scores

NAMES = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")
"""Mean AP over IoU 0.50:0.95; AP at 0.50 and at 0.75; of boxes below 32², of 32² to 96², and above 96² pixels."""

PER_CELL = 100
"""Predictions of a class in an image that count, the best ones."""


def score(predictions: Predictions, truth: Mapping[str, Any]) -> Scores:
    """Return the six COCO values of ``NAMES``, and AP over IoU 0.50:0.95 per class; ``truth`` is a COCO document.

    Raises:
        ValueError: if a prediction names an image or category that the truth does not have.
    """
    places = Places.of(truth)
    return summarise(_match(predictions, truth, places), truth, places)


def summarise(matched: Matched, truth: Mapping[str, Any], places: Places) -> Scores:
    """Return the six COCO values of ``NAMES``, and AP per class, of what predictions hit."""
    precision = accumulate(matched).precision
    every = precision[..., 0]
    values = [mean(every), mean(every[IOUS == 0.5]), mean(every[IOUS == 0.75])]
    values += [mean(precision[..., position]) for position in range(1, len(AREAS))]
    names = distinct_names(truth["categories"])
    per_class = {name: mean(every[:, :, places.classes[key]]) for key, name in names.items()}
    return Scores(values=dict(zip(NAMES, values, strict=True)), per_class=per_class)


def ap(predictions: Predictions, truth: Mapping[str, Any]) -> float | None:
    """Return COCO AP alone, the same bits as in ``score`` and in less time; None without a box to find."""
    return mean(accumulate(_match(predictions, truth, Places.of(truth), ("all",))).precision)


def ap_interval(
    predictions: Predictions, truth: Mapping[str, Any], resamples: int = 200, seed: int = 0
) -> tuple[float, float] | None:
    """Return a bootstrap interval of COCO AP over redrawn sets of images, nominally 90 %.

    Each set has as many images as the truth, drawn with replacement. Images are evaluated once. AP of a set is the mean
    over the classes that it shows. A set that shows none is left out. The interval is the basic one: the 5th and the
    95th percentile, mirrored at AP. AP on few images comes out too high, so the interval holds in 70 to 85 % of cases.

    Args:
        predictions: in COCO result form.
        truth: COCO document.
        resamples: number of sets.
        seed: of the draws; equal seeds give equal intervals.

    Returns:
        Lower and upper end, fractions in [0, 1]; None with fewer than three images, or without a box to find.
    """
    count = len(truth["images"])
    if count < 3:
        return None
    matched = _match(predictions, truth, Places.of(truth), ("all",))
    ap = mean(accumulate(matched).precision)
    if ap is None:
        return None
    draws = np.random.default_rng(seed).integers(count, size=(resamples, count))
    redrawn = (mean(accumulate(matched.redrawn(drawn)).precision) for drawn in draws)
    low, high = np.quantile([other for other in redrawn if other is not None], (0.05, 0.95))
    return max(0.0, float(2 * ap - high)), min(1.0, float(2 * ap - low))


def _match(
    predictions: Predictions, truth: Mapping[str, Any], places: Places, areas: Sequence[str] = tuple(AREAS)
) -> Matched:
    """Return which predictions hit; ``areas`` are the sizes of boxes to look at."""
    found = Found.read(predictions, places)
    found = found.at(found.best(places.cells(found.images, found.classes), PER_CELL))
    boxes = Truth.read(truth["annotations"], places, ignored="iscrowd", has_crowds=True)
    return match(found, boxes, places, areas)
