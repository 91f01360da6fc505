"""Encode images as a feature pyramid: pixel statistics, a backbone, FPN.

FPN as in maskrcnn_benchmark/modeling/backbone/fpn.py of the public GLIP code.

Shape letters: B batch, C channels, H W pixels, h w feature cells.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from glip_adapt.core.structures import ImageBatch, Pyramid
from glip_adapt.trunks.backbones import normalised

# Statistics of the public configs (configs/pretrain/*.yaml): channels in BGR order, range 0–255.
PIXEL_MEAN_BGR = (103.53, 116.28, 123.675)
PIXEL_STD_BGR = (57.375, 57.12, 58.395)


class ImageEncoder(nn.Module):
    """Normalise images, and pass them through backbone and FPN.

    Padding is zero *after* normalisation and is not masked anywhere later, as in the public code.
    """

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(self, backbone: nn.Module, fpn: FeaturePyramid) -> None:
        super().__init__()
        self.backbone = backbone
        self.fpn = fpn
        self.register_buffer("pixel_mean", torch.tensor(PIXEL_MEAN_BGR).view(3, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(PIXEL_STD_BGR).view(3, 1, 1), persistent=False)

    def normalise(self, images: ImageBatch) -> Tensor:
        """Return (B, 3, H, W) float, BGR, zero mean and unit variance, exactly zero in the padding."""
        return normalised(replace(images, pixels=images.pixels.flip(1)), self.pixel_mean, self.pixel_std)

    def forward(self, images: ImageBatch) -> Pyramid:
        """Return five feature maps of strides 8 … 128."""
        return Pyramid.from_levels(self.fpn(self.backbone(self.normalise(images))), images.image_sizes_hw)


class FeaturePyramid(nn.Module):
    """FPN with nearest upsampling, and two coarser levels: P6 convolved from P5, P7 from relu(P6).

    While training, DropBlock cuts patches out of all merged maps but the coarsest, as in the public code.
    """

    def __init__(self, input_widths: Sequence[int], width: int, *, drop_block: float = 0.0) -> None:
        super().__init__()
        self.lateral = nn.ModuleList(nn.Conv2d(w, width, kernel_size=1) for w in input_widths)
        self.output = nn.ModuleList(nn.Conv2d(width, width, kernel_size=3, padding=1) for _ in input_widths)
        self.p6 = nn.Conv2d(width, width, kernel_size=3, stride=2, padding=1)
        self.p7 = nn.Conv2d(width, width, kernel_size=3, stride=2, padding=1)
        self.drop_block = DropBlock(drop_block)

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Return five maps (B, C, h, w) of strides 8 … 128 for three of strides 8, 16, 32."""
        merged = [lateral(x) for lateral, x in zip(self.lateral, maps, strict=True)]
        for fine in range(len(merged) - 2, -1, -1):
            merged[fine] = merged[fine] + F.interpolate(merged[fine + 1], size=merged[fine].shape[-2:], mode="nearest")
        dropped = [*(self.drop_block(x) for x in merged[:-1]), merged[-1]]
        levels = [output(x) for output, x in zip(self.output, dropped, strict=True)]
        p6 = self.p6(levels[-1])
        return (*levels, p6, self.p7(F.relu(p6)))


class DropBlock(nn.Module):
    """Zero 3 × 3 blocks while training, the same in all channels, and scale up the rest (arXiv 1810.12890).

    Rate and scale as in maskrcnn_benchmark/layers/dropblock.py of the public code.
    """

    def __init__(self, rate: float, size: int = 3) -> None:
        super().__init__()
        self.rate, self.size = rate, size

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, C, h, w)."""
        if not self.training or self.rate == 0:
            return x
        centres = (torch.rand(x.shape[0], 1, *x.shape[2:], device=x.device) < self.rate / self.size**2).to(x.dtype)
        kept = 1 - F.max_pool2d(centres, self.size, stride=1, padding=self.size // 2)
        return x * kept * (kept.numel() / kept.sum())
