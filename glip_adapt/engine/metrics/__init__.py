"""Metrics, one a file: predictions and ground truth → named values."""

from __future__ import annotations

from glip_adapt.engine.metrics import coco, lvis
from glip_adapt.engine.metrics.protocol import Metric

METRICS: dict[str, Metric] = {"coco": coco.score, "fixed_ap": lvis.fixed_ap, "lvis_ap": lvis.standard_ap}
