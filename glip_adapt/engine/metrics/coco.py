"""COCO AP of boxes, computed by pycocotools."""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from glip_adapt.engine.metrics.names import distinct_names
from glip_adapt.engine.metrics.protocol import Predictions, Scores

NAMES = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")
"""Mean AP over IoU 0.50:0.95; AP at 0.50 and at 0.75; of boxes below 32², of 32² to 96², and above 96² pixels."""

AREAS = ("all", "small", "medium", "large")
"""Sizes of boxes, in the order of pycocotools."""


def score(predictions: Predictions, truth: Mapping[str, Any]) -> Scores:
    """Return the six COCO values of ``NAMES``, and AP over IoU 0.50:0.95 per class; ``truth`` is a COCO document."""
    evaluation = _evaluate(predictions, truth)
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.accumulate()
        evaluation.summarize()
    precision = evaluation.eval["precision"]  # (IoU, recall, class, area, detections)
    per_class = {
        name: _mean(precision[:, :, evaluation.params.catIds.index(category_id), 0, -1])
        for category_id, name in distinct_names(truth["categories"]).items()
    }
    values = {name: _defined(value) for name, value in zip(NAMES, evaluation.stats, strict=False)}
    return Scores(values=values, per_class=per_class)


def ap(predictions: Predictions, truth: Mapping[str, Any]) -> float | None:
    """Return COCO AP alone, the same bits as in ``score`` and in a fourth of its time; None without a box to find."""
    evaluation = _evaluate(predictions, truth, AREAS[:1])
    evaluation.params.maxDets = evaluation.params.maxDets[-1:]
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.accumulate()
    return _mean(evaluation.eval["precision"])


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
    evaluation = _evaluate(predictions, truth, AREAS[:1])
    cells = [evaluation.evalImgs[first : first + count] for first in range(0, len(evaluation.evalImgs), count)]
    evaluation.params.maxDets = evaluation.params.maxDets[-1:]
    random, found = np.random.default_rng(seed), []
    with contextlib.redirect_stdout(io.StringIO()):
        for drawn in (np.arange(count), *random.integers(count, size=(resamples, count))):
            evaluation.evalImgs = [cell[place] for cell in cells for place in drawn]
            evaluation.accumulate()
            found.append(_mean(evaluation.eval["precision"]))
    ap, *redrawn = found
    if ap is None:
        return None
    low, high = np.quantile([other for other in redrawn if other is not None], (0.05, 0.95))
    return max(0.0, float(2 * ap - high)), min(1.0, float(2 * ap - low))


def _evaluate(predictions: Predictions, truth: Mapping[str, Any], areas: Sequence[str] = AREAS) -> COCOeval:
    """Return an evaluation with its images matched; ``areas`` are the sizes of boxes to look at."""
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools reports its progress with print
        ground = COCO()
        ground.dataset = truth
        ground.createIndex()
        found = ground.loadRes([dict(p) for p in predictions]) if predictions else COCO()
        evaluation = COCOeval(ground, found, "bbox")
        evaluation.params.imgIds = [entry["id"] for entry in truth["images"]]
        evaluation.params.areaRng = evaluation.params.areaRng[: len(areas)]
        evaluation.params.areaRngLbl = list(areas)
        evaluation.evaluate()
    return evaluation


def _mean(precision: np.ndarray) -> float | None:
    return _defined(float(precision[precision > -1].mean())) if (precision > -1).any() else None


def _defined(value: float) -> float | None:
    """Turn pycocotools' -1 into None."""
    return None if value < 0 or math.isnan(value) else float(value)
