"""COCO AP of boxes, computed by pycocotools."""

from __future__ import annotations

import contextlib
import io
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from glip_adapt.engine.metrics.protocol import Predictions, Scores

NAMES = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")
"""Mean AP over IoU 0.50:0.95; AP at 0.50 and at 0.75; of boxes below 32², of 32² to 96², and above 96² pixels."""


def score(predictions: Predictions, truth: Mapping[str, Any]) -> Scores:
    """Return the six COCO values of ``NAMES``, and AP over IoU 0.50:0.95 per class; ``truth`` is a COCO document."""
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools reports its progress with print
        ground = COCO()
        ground.dataset = truth
        ground.createIndex()
        found = ground.loadRes([dict(p) for p in predictions]) if predictions else COCO()
        evaluation = COCOeval(ground, found, "bbox")
        evaluation.params.imgIds = [entry["id"] for entry in truth["images"]]
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    precision = evaluation.eval["precision"]  # (IoU, recall, class, area, detections)
    per_class = {
        name: _mean(precision[:, :, evaluation.params.catIds.index(category_id), 0, -1])
        for category_id, name in _distinct_names(truth["categories"]).items()
    }
    values = {name: _defined(value) for name, value in zip(NAMES, evaluation.stats, strict=False)}
    return Scores(values=values, per_class=per_class)


def _distinct_names(categories: Sequence[Mapping[str, Any]]) -> dict[int, str]:
    """Return category id → name, with the id where several categories have one name."""
    counts = Counter(entry["name"] for entry in categories)
    return {e["id"]: e["name"] if counts[e["name"]] == 1 else f"{e['name']} (category {e['id']})" for e in categories}


def _mean(precision: np.ndarray) -> float | None:
    return _defined(float(precision[precision > -1].mean())) if (precision > -1).any() else None


def _defined(value: float) -> float | None:
    """Turn pycocotools' -1 into None."""
    return None if value < 0 or math.isnan(value) else float(value)
