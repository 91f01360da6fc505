"""GLIP as one graph for ``torch.export``: pixels in, boxes out, for one image of any size.

No step depends on how many candidates there are, as a tracer cannot follow that.

Shape letters: A anchors over all levels, K classes, N boxes, H W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import nms

from glip_adapt.core import boxes
from glip_adapt.core.structures import DIVISOR, Detections, Pyramid, SizeHW, TextFeatures
from glip_adapt.trunks.glip import anchors as codec
from glip_adapt.trunks.glip.anchors import STRIDES
from glip_adapt.trunks.glip.decode import (
    CANDIDATES_PER_LEVEL,
    MAX_DETECTIONS,
    NMS_IOU,
    SCORE_THRESHOLD,
    class_probabilities,
)
from glip_adapt.trunks.glip.head import HeadOutput
from glip_adapt.trunks.glip.swin import SwinBlock
from glip_adapt.trunks.protocol import Network


class DetectionGraph(nn.Module):
    """The whole detector as a function of one image that can be traced."""

    def __init__(self, network: Network, texts: Sequence[TextFeatures]) -> None:
        super().__init__()
        self.network: Any = network
        self.captions = len(texts)
        for i, text in enumerate(texts):
            self.register_buffer(f"features_{i}", text.features)
            self.register_buffer(f"mask_{i}", text.mask)
            self.register_buffer(f"token_map_{i}", text.token_map)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return edges of boxes (N, 4) in pixels, scores (N,) best first, and labels (N,).

        Args:
            pixels: (1, 3, H, W) uint8, RGB, 0–255; resized as ``ViewConfig`` says, not padded.
        """
        size_hw = (pixels.shape[2], pixels.shape[3])
        pyramid = self._encode(pixels, size_hw)
        parts, first_label = [], 0
        for i in range(self.captions):
            text = TextFeatures(*(self.get_buffer(f"{name}_{i}") for name in ("features", "mask", "token_map")))
            found = _best(decode_image(self.network.predict(self.network.fuse(pyramid, text)), size_hw))
            parts.append(replace(found, labels=found.labels + first_label))
            first_label += text.token_map.shape[1]
        merged = _merge(parts)
        return boxes.to_edges(merged.boxes_xyxy), merged.scores, merged.labels

    def _encode(self, pixels: Tensor, size_hw: SizeHW) -> Pyramid:
        encoder = self.network.image_encoder
        normalised = (pixels.flip(1).to(encoder.pixel_mean) - encoder.pixel_mean) / encoder.pixel_std
        height, width = ((side + DIVISOR - 1) // DIVISOR * DIVISOR for side in size_hw)
        padded = F.pad(normalised, (0, width - size_hw[1], 0, height - size_hw[0]))
        return Pyramid.from_levels(encoder.fpn(encoder.backbone(padded)), (size_hw,))


def decode_image(output: HeadOutput, size_hw: SizeHW) -> Detections:
    """Return the detections of ``decode.decode`` for one image, before the limit of 100 and in no order.

    Candidates below the threshold take part with a score of zero, and are dropped at the end.
    """
    class_scores = class_probabilities(output)[0]
    classes = class_scores.shape[1]
    score = torch.where(class_scores > SCORE_THRESHOLD, class_scores * output.centerness[0, :, None].sigmoid(), 0.0)
    scores, places, start = [], [], 0
    for level in score.split([h * w for h, w in output.level_shapes_hw]):
        best = F.pad(level.flatten(), (0, CANDIDATES_PER_LEVEL)).topk(CANDIDATES_PER_LEVEL)
        scores.append(best.values)
        places.append(best.indices + start * classes)
        start += level.shape[0]
    score, place = torch.cat(scores), torch.cat(places)
    score, place = score[score > 0].sqrt(), place[score > 0]
    anchor, labels = place // classes, place % classes
    corners = codec.decode(output.box_deltas[0, anchor], output.anchors_xyxy[anchor]).unflatten(1, (2, 2))
    x, y = (corners[..., i].clamp(0, size_hw[1 - i] - 1) for i in range(2))
    boxes_xyxy = torch.stack((x, y), dim=-1).flatten(1)
    kept = _class_aware_nms(boxes_xyxy, score, labels, classes)
    return Detections(boxes_xyxy[kept], score[kept], labels[kept])


def _class_aware_nms(boxes_xyxy: Tensor, scores: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Return the indices that ``boxes.class_aware_nms`` keeps, class by class; a class may have no box."""
    half_open = boxes_xyxy + boxes_xyxy.new_tensor((0.0, 0.0, 1.0, 1.0))
    # torch.export assumes that two boxes or more survive: two outside of the image are appended, and dropped.
    outside, last = boxes_xyxy.new_tensor(((-2, -2, -1, -1), (-4, -4, -3, -3))), scores.new_tensor((-1, -1))
    kept = []
    for label in range(classes):
        members = (labels == label).nonzero().squeeze(1)
        survivors = nms(torch.cat((half_open[members], outside)), torch.cat((scores[members], last)), NMS_IOU)
        kept.append(members[survivors[:-2]])
    return torch.cat(kept)


def _best(found: Detections) -> Detections:
    """At most 100, best first; everything that ties with the hundredth stays too."""
    scores, order = found.scores.sort(descending=True)
    good = scores >= F.pad(scores, (0, MAX_DETECTIONS))[MAX_DETECTIONS - 1]
    order = order[good]
    return Detections(found.boxes_xyxy[order], scores[good], found.labels[order])


def _merge(parts: Sequence[Detections]) -> Detections:
    """Return the detections of all captions, best first."""
    if len(parts) == 1:
        return parts[0]
    scores, order = torch.cat([part.scores for part in parts]).sort(descending=True)
    boxes_xyxy = torch.cat([part.boxes_xyxy for part in parts])[order]
    labels = torch.cat([part.labels for part in parts])[order]
    return Detections(boxes_xyxy, scores, labels)


def least_side(network: Network) -> int:
    """Return the smallest height and width in pixels of an image that a traced network takes.

    A tracer holds every size of one for a constant: below, the coarsest map has one cell, or one Swin window is enough.
    """
    windows = [module.window for module in network.modules() if isinstance(module, SwinBlock)]
    return max([STRIDES[-1], *(DIVISOR * window for window in windows)]) + 1
