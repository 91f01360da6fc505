"""The contract of a metric."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Predictions = Sequence[Mapping[str, Any]]
"""Detections in COCO result form: ``{"image_id", "category_id", "bbox": [x, y, width, height], "score"}``."""


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Values of one metric.

    Attributes:
        values: name → value, fractions in [0, 1]; None where it is undefined, such as without a box of that size.
        per_class: class name → the main value of the metric for this class alone.
    """

    values: Mapping[str, float | None]
    per_class: Mapping[str, float | None]


Metric = Callable[[Predictions, Mapping[str, Any]], Scores]
"""Predictions and the ground truth as a COCO document → scores."""
