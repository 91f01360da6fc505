"""One square anchor per feature cell, and the box codec.

maskrcnn_benchmark/modeling/rpn/anchor_generator.py and ``BoxCoder`` in vldyhead.py of the public GLIP code; anchors
are inclusive pixel boxes, so an anchor of size 64 reaches from -28 to 35 in the first cell of stride 8.

Shape letters: A anchors over all levels, N boxes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from glip_adapt.core.structures import SizeHW
from glip_adapt.trunks.glip.config import ANCHOR_SCALE

STRIDES = (8, 16, 32, 64, 128)  # pixels between cells of each level
CENTRE_WEIGHT, SIDE_WEIGHT = 10.0, 5.0  # of the box codec: factors of the deltas of centres and of sides
MAX_LOG_SCALE = math.log(1000 / 16)  # a decoded side is at most 62.5 times the anchor's


def anchor_grid(
    level_shapes_hw: Sequence[SizeHW], device: torch.device | str = "cpu", scale: int = ANCHOR_SCALE
) -> Tensor:
    """Return (A, 4) float32 anchors with sides of ``scale`` strides, finest level first, row by row within a level."""
    levels = []
    for (h, w), stride in zip(level_shapes_hw, STRIDES, strict=True):
        size = scale * stride
        y = torch.arange(h, dtype=torch.float32, device=device) * stride + (stride - 1) / 2
        x = torch.arange(w, dtype=torch.float32, device=device) * stride + (stride - 1) / 2
        centres = torch.cartesian_prod(y, x).flip(-1)  # (h·w, 2) as (x, y)
        levels.append(torch.cat((centres - (size - 1) / 2, centres + (size - 1) / 2), dim=-1))
    return torch.cat(levels)


@lru_cache(maxsize=64)  # a handful of image sizes is in use at a time
@torch.inference_mode(False)  # a tensor of that mode could not take part in training later
def kept_anchor_grid(level_shapes_hw: tuple[SizeHW, ...], device: torch.device, scale: int) -> Tensor:
    """Return ``anchor_grid``, made once for each size and device; nobody may write into it."""
    return anchor_grid(level_shapes_hw, device, scale)


def level_shapes(padded_hw: SizeHW) -> tuple[SizeHW, ...]:
    """Return (h, w) of each level for an image padded to ``padded_hw``, multiples of 32."""
    return tuple((-(-padded_hw[0] // stride), -(-padded_hw[1] // stride)) for stride in STRIDES)


def decode(deltas: Tensor, anchors_xyxy: Tensor) -> Tensor:
    """Return boxes (N, 4) for deltas (N, 4) at anchors (N, 4); sides are limited to 62.5 times the anchor's."""
    shift, log_scale = deltas[..., :2] / CENTRE_WEIGHT, deltas[..., 2:] / SIDE_WEIGHT
    anchor_size = anchors_xyxy[..., 2:] - anchors_xyxy[..., :2] + 1
    centre = shift * anchor_size + centres(anchors_xyxy)
    half = 0.5 * (log_scale.clamp(max=MAX_LOG_SCALE).exp() * anchor_size - 1)
    return torch.cat((centre - half, centre + half), dim=-1)


def centres(boxes_xyxy: Tensor) -> Tensor:
    """Return (N, 2) centres (x, y)."""
    return (boxes_xyxy[..., :2] + boxes_xyxy[..., 2:]) / 2
