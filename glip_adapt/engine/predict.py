"""RGB picture → ``Detections`` in its own pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import get_args

import torch
from PIL import Image

from glip_adapt.adapters.base import Detector, Precision, Prefix, autocast
from glip_adapt.core import boxes
from glip_adapt.core.config import describe_unknown
from glip_adapt.core.structures import Detections, SizeHW
from glip_adapt.data.transforms import View, collate, view_image
from glip_adapt.trunks.catalogue import trunk_spec
from glip_adapt.trunks.glip.decode import decode, merge


@dataclass(frozen=True, kw_only=True)
class PredictConfig:
    """How a picture is shown to the network (configs/pretrain/*.yaml of the public code)."""

    short_side: int = 800
    "pixels"
    max_long_side: int = 1333
    "pixels"
    precision: Precision = "float32"
    "of large products; bfloat16 or float16 pays on a GPU"

    def __post_init__(self) -> None:
        if not 32 <= self.short_side <= self.max_long_side:
            raise ValueError(
                f"A picture is resized to short_side ≥ 32 and at most max_long_side; got {self.short_side} and "
                f"{self.max_long_side}."
            )
        if self.precision not in get_args(Precision):
            raise ValueError(f"Unknown precision {describe_unknown(self.precision, get_args(Precision))}.")

    @classmethod
    def of(cls, trunk: str) -> PredictConfig:
        """Return how a trunk is shown pictures: the public test setting, or for the nano trunks what they know."""
        spec = trunk_spec(trunk)
        return cls(short_side=spec.short_side, max_long_side=spec.max_long_side)

    @property
    def view(self) -> View:
        """The one view that is tested."""
        return View(self.short_side, flip=False)


@torch.no_grad()
def predict(model: Detector, image: Image.Image, config: PredictConfig | None = None) -> Detections:
    """Return what ``model`` finds in a picture, best first.

    Args:
        model: from ``attach``, ``load_adapter`` or ``load_baked``.
        image: RGB picture of any size.
        config: resizing; by default that of the trunk, ``PredictConfig.of``.

    Returns:
        At most 100 boxes per caption (more only where scores tie) in inclusive pixels of ``image``, labels in the
        order of ``model.classes``.
    """
    config = config or PredictConfig.of(model.trunk.name)
    model.train(False)
    pixels = view_image(image, config.view, config.max_long_side)
    with autocast(model.device, config.precision):
        prefix = model.frozen_prefix(collate([pixels]).to(model.device))
    (found,) = detections(model, prefix, [(image.height, image.width)], config)
    return found


@torch.no_grad()
def detections(model: Detector, prefix: Prefix, sizes_hw: Sequence[SizeHW], config: PredictConfig) -> list[Detections]:
    """Return what follows from the frozen prefix of B pictures, in inclusive pixels of each of ``sizes_hw``.

    The model must be in eval mode already when the prefix is computed.
    """
    with autocast(model.device, config.precision):
        outputs = model.finish(prefix)
    captions, first_label = [], 0
    for output in outputs:
        captions.append([replace(part, labels=part.labels + first_label) for part in decode(output)])
        first_label += output.token_map.shape[1]
    results = []
    for parts, seen_hw, size_hw in zip(zip(*captions, strict=True), outputs[0].sizes_hw, sizes_hw, strict=True):
        found = merge(parts)
        boxes_xyxy = boxes.scale(found.boxes_xyxy, seen_hw, size_hw)
        results.append(Detections(boxes_xyxy.cpu(), found.scores.cpu(), found.labels.cpu()))
    return results
