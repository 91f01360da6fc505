"""What the modules of the parity check share: goldens, limits, and the comparison of detections.

``parity.py`` describes the check.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from glip_adapt.core.structures import Detections, ImageBatch
from glip_adapt.data.transforms import collate

Recorded = Literal["float64", "float32"]


@dataclass(frozen=True)
class Limits:
    """The largest error of a network, by its precision; None where it is shown but not judged."""

    float64: float | None
    float32: float | None

    def against(self, recorded: Recorded) -> Limits:
        """Return the limits against arrays that were recorded in this precision."""
        return self if recorded == "float64" else Limits(self.float32, self.float32)


FORWARD = Limits(1e-5, 5e-3)
GRADIENT = Limits(1e-5, 5e-2)
FLOAT64_ONLY = Limits(1e-5, None)
PIXELS = Limits(0.1, 0.1)
HUNDREDTH = Limits(0.01, 0.01)
SCORES = Limits(1e-9, 1e-9)
EQUAL = Limits(0, 0)
NOT_AT_ALL = Limits(None, None)

Measured = tuple[str, float, Limits]  # quantity, error of one network, limits


@dataclass(frozen=True)
class Golden:
    """One golden file.

    Attributes:
        path: of the file.
        kind: one of ``MEASURES`` of ``parity.py``.
        arrays: its content by name.
        partner: what else it needs: an evaluation the arrays in float64, if any; optimiser steps a file with
            the boxes; phrases the content of their JSON file.
    """

    path: Path
    kind: str
    arrays: Mapping[str, Any]
    partner: Mapping[str, Any] | None = None

    @property
    def labels(self) -> list[str]:
        """The class names."""
        return [str(label) for label in (self.arrays if "labels" in self.arrays else self.partner or {})["labels"]]


def measure_detections(found: Detections, expected: Detections, pixels: Limits = PIXELS) -> Iterator[Measured]:
    """Yield the errors of number, boxes, scores and labels of detections that were recorded in float32."""
    partner, distance = match(found, expected)
    yield "count", abs(len(found) - len(expected)), EQUAL
    yield "boxes (pixels)", distance, pixels
    yield "scores", relative(found.scores[partner], expected.scores), FORWARD.against("float32")
    yield "labels", (found.labels[partner] != expected.labels).sum().item(), EQUAL


def detections_of(arrays: Mapping[str, Any], key: str) -> Detections:
    """Return recorded detections; their labels start at 1. ``key`` has a gap for what an array holds."""
    boxes, scores, labels = (torch.from_numpy(arrays[key.format(part)]) for part in ("boxes", "scores", "labels"))
    return Detections(boxes, scores, labels.long() - 1)


def some_of(detections: Detections, places: slice) -> Detections:
    return Detections(detections.boxes_xyxy[places], detections.scores[places], detections.labels[places])


def match(found: Detections, expected: Detections) -> tuple[Tensor, float]:
    """Return for each expected box the nearest one found of its label, used once, and the largest distance in pixels.

    Boxes are paired rather than compared in order, since scores that differ in the last bit may swap places.
    """
    distance = (found.boxes_xyxy[None] - expected.boxes_xyxy[:, None]).abs().amax(-1)
    distance[found.labels[None] != expected.labels[:, None]] = float("inf")
    partner = torch.zeros(len(expected), dtype=torch.int64)
    worst = 0.0
    for i in range(len(expected)):
        partner[i] = distance[i].argmin()
        worst = max(worst, distance[i, partner[i]].item())
        distance[:, partner[i]] = float("inf")
    return partner, worst


def pictures(arrays: Mapping[str, Any], weights: ModuleType) -> ImageBatch:
    """Return the pictures of a golden file, padded together."""
    seeds = arrays["seeds"] if "seeds" in arrays else [arrays["seed"]]
    sizes_hw = arrays["sizes"] if "sizes" in arrays else [arrays["size"]]
    drawn = (weights.image(int(seed), int(h), int(w)) for seed, (h, w) in zip(seeds, sizes_hw, strict=True))
    return collate([torch.from_numpy(rgb).permute(2, 0, 1) for rgb in drawn])


def relative(ours: Any, golden: Any) -> float:
    """Return ‖a − b‖ / ‖b‖ in float64."""
    a = torch.as_tensor(ours).detach().double()
    b = torch.as_tensor(np.asarray(golden)).double().reshape(a.shape)
    return ((a - b).norm() / b.norm()).item()
