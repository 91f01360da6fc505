"""Backbones, from pixels to feature maps: Swin, or any of timm.

Shape letters: B batch, C channels, H W pixels, h w feature cells.
"""

from __future__ import annotations

from typing import Any

import timm
from torch import Tensor, nn

from glip_adapt.core.structures import ImageBatch
from glip_adapt.trunks.encoder_config import SwinConfig
from glip_adapt.trunks.swin import SwinBackbone


def build_backbone(config: SwinConfig | str) -> SwinBackbone | TimmBackbone:
    """Return a backbone with random weights, by its sizes or by its name in timm."""
    return TimmBackbone(config) if isinstance(config, str) else SwinBackbone(**vars(config))


def normalised(images: ImageBatch, mean: Tensor, std: Tensor) -> Tensor:
    """Return pixels (B, 3, H, W) as (x - mean) / std, exactly zero in the padding.

    Computed in float32, and converted to the type of ``mean`` at the end. Both statistics are (3, 1, 1), in 0–255.
    """
    pixels = ((images.pixels.to(mean.float()) - mean.float()) / std.float()).to(mean)
    for image, (height, width) in zip(pixels, images.image_sizes_hw, strict=True):
        image[:, height:] = 0
        image[:, :, width:] = 0
    return pixels


class TimmBackbone(nn.Module):
    """A timm backbone by name, with feature maps of strides 8, 16 and 32."""

    def __init__(self, name: str) -> None:
        """Create the backbone with random weights.

        Raises:
            RuntimeError: if timm has no model of that name.
            ValueError: if the model has no feature maps of strides 8, 16 and 32.
        """
        super().__init__()
        self.body = timm.create_model(name, pretrained=False, features_only=True)
        info: Any = self.body.feature_info
        strides = info.reduction()
        if not {8, 16, 32}.issubset(strides):
            raise ValueError(f"timm model {name!r} has feature strides {strides}, but 8, 16 and 32 are needed.")
        self.indices = [strides.index(stride) for stride in (8, 16, 32)]
        self.output_widths = tuple(info.channels()[i] for i in self.indices)

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """Return three maps (B, C, h, w) of strides 8, 16, 32 for normalised (B, 3, H, W) pixels."""
        maps = self.body(pixels)
        return tuple(maps[i] for i in self.indices)
