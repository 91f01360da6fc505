"""GLIP as one graph for ``torch.export``: pixels in, boxes out, for one image of any size.

Shape letters: N boxes, H W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from glip_adapt.core import boxes
from glip_adapt.core.structures import DIVISOR, Pyramid, TextFeatures, merge
from glip_adapt.trunks.glip.anchors import STRIDES
from glip_adapt.trunks.glip.decode import decode
from glip_adapt.trunks.protocol import Network
from glip_adapt.trunks.swin import SwinBlock


class DetectionGraph(nn.Module):
    """The detector as a traceable function of one image."""

    def __init__(self, network: Network, texts: Sequence[TextFeatures]) -> None:
        super().__init__()
        self.network: Any = network
        self.caption_count = len(texts)
        for i, text in enumerate(texts):
            for name, value in vars(text).items():
                self.register_buffer(f"{name}_{i}", value)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return edges of boxes (N, 4) in pixels, scores (N,) best first, and labels (N,).

        ``pixels`` are (1, 3, H, W) uint8, RGB, 0–255; resized as ``ViewConfig`` says, not padded.
        """
        size_hw = (pixels.shape[2], pixels.shape[3])
        encoder = self.network.image_encoder
        normalised = (pixels.flip(1).to(encoder.pixel_mean) - encoder.pixel_mean) / encoder.pixel_std
        height, width = ((side + DIVISOR - 1) // DIVISOR * DIVISOR for side in size_hw)
        padded = F.pad(normalised, (0, width - size_hw[1], 0, height - size_hw[0]))
        pyramid = Pyramid.from_levels(encoder.fpn(encoder.backbone(padded)), (size_hw,))
        parts, first_label = [], 0
        for i in range(self.caption_count):
            text = TextFeatures(*(self.get_buffer(f"{name}_{i}") for name in ("features", "mask", "token_map")))
            (found,) = decode(self.network.predict(self.network.fuse(pyramid, text)))
            parts.append(replace(found, labels=found.labels + first_label))
            first_label += text.token_map.shape[1]
        merged = merge(parts)
        return boxes.to_edges(merged.boxes_xyxy), merged.scores, merged.labels


def least_side(network: Network) -> int:
    """Return the smallest height and width in pixels of an image that a traced network takes.

    Tracing fixes dimensions of size 1: a smaller image would have a map of one cell, or a single Swin window.
    """
    windows = [module.window for module in network.modules() if isinstance(module, SwinBlock)]
    return max([STRIDES[-1], *(DIVISOR * window for window in windows)]) + 1
