"""Metrics, one a file: predictions and ground truth → named values.

A metric is a function ``score(predictions, truth) -> Scores``. A new one is a file here and an entry of ``METRICS``.
"""

from __future__ import annotations

from glip_adapt.engine.metrics import coco
from glip_adapt.engine.metrics.protocol import Metric

METRICS: dict[str, Metric] = {"coco": coco.score}
