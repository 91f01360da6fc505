"""Where the cells of feature maps lie in their images: padding, positions, reference points, proposals.

Deformable DETR, arXiv 2010.04159, and DINO, arXiv 2203.03605. All follows from the sizes of the images, so that it is
known without a look at the image.

Shape letters: B batch, A cells over all levels, L levels, C channels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from glip_adapt.core.structures import SizeHW

IMAGE_TEMPERATURE = 20  # of the sine functions of image positions
QUERY_TEMPERATURE = 10_000  # of those of boxes and tokens
PROPOSED_SIDE = 0.05  # of a proposal at the finest level, in shares of the image; twice as much at the next
PROPOSABLE = (0.01, 0.99)  # range of its coordinates


@dataclass(frozen=True)
class Geometry:
    """The places of all cells of B images.

    Attributes:
        real: (B, A) bool, False where a cell shows padding; None if none does.
        position: (B, A, C) float, sine functions of each cell's place in its image.
        real_share: (B, L, 2) float, shares of width and height of a map that show the image.
        centres: (B, A, 2) float, (x, y) of each cell, in shares of the image.
        proposals: (B, A, 4) float, logits of a box around each cell; infinite where there is none.
        proposable: (B, A) bool, False where there is none.
    """

    real: Tensor | None
    position: Tensor
    real_share: Tensor
    centres: Tensor
    proposals: Tensor
    proposable: Tensor


@lru_cache(maxsize=8)  # a handful of image sizes is in use at a time; an entry takes as much as a pyramid
@torch.inference_mode(False)  # a tensor of that mode could not take part in training later
@torch.no_grad()
def geometry(
    level_shapes_hw: tuple[SizeHW, ...],
    image_sizes_hw: tuple[SizeHW, ...],
    finest_stride: int,
    width: int,
    device: torch.device,
    dtype: torch.dtype,
) -> Geometry:
    """Return the places of the cells of B images; nobody may write into them.

    Args:
        level_shapes_hw: (h, w) of each map.
        image_sizes_hw: real (height, width) of each image inside the padding, in pixels.
        finest_stride: pixels between cells of the first map.
        width: channels C.
        device: of the results.
        dtype: of the results.
    """
    padded_hw = tuple(side * finest_stride for side in level_shapes_hw[0])
    images = [_image_geometry(level_shapes_hw, padded_hw, size_hw, width, dtype) for size_hw in image_sizes_hw]
    real, position, share, centres = (torch.stack(column) for column in zip(*images, strict=True))
    sides = [centres.new_full((h * w, 2), PROPOSED_SIDE * 2.0**i) for i, (h, w) in enumerate(level_shapes_hw)]
    boxes = torch.cat((centres, torch.cat(sides).expand_as(centres)), dim=-1)
    proposable = ((boxes > PROPOSABLE[0]) & (boxes < PROPOSABLE[1])).all(-1) & real
    proposals = (boxes / (1 - boxes)).log().masked_fill(~proposable.unsqueeze(-1), float("inf"))
    return Geometry(
        real=None if bool(real.all()) else real.to(device),
        position=position.to(device, dtype),
        real_share=share.to(device),
        centres=centres.to(device),
        proposals=proposals.to(device),
        proposable=proposable.to(device),
    )


def _image_geometry(
    level_shapes_hw: tuple[SizeHW, ...], padded_hw: tuple[int, ...], size_hw: SizeHW, width: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return real (A,), position (A, C), real_share (L, 2) and centres (A, 2) of one image."""
    real, position, shares, centres = [], [], [], []
    for h, w in level_shapes_hw:
        rows, columns = (_real_cells(*sides) for sides in zip((h, w), padded_hw, size_hw, strict=True))
        real.append((torch.arange(h)[:, None] < rows) & (torch.arange(w) < columns))
        down, right = _axis_position(h, rows, width // 2), _axis_position(w, columns, width // 2)
        both = torch.cat((down[:, None].expand(-1, w, -1), right.expand(h, -1, -1)), dim=-1)
        position.append(both.flatten(0, 1))
        y, x = ((torch.arange(side, dtype=dtype) + 0.5) / count for side, count in ((h, rows), (w, columns)))
        centres.append(torch.cartesian_prod(y, x).flip(-1))
        shares.append(torch.tensor((columns / w, rows / h), dtype=dtype))
    return torch.cat([r.flatten() for r in real]), torch.cat(position), torch.stack(shares), torch.cat(centres)


def _real_cells(cells: int, padded: int, real: int) -> int:
    """Return how many cells of an axis show the image, by the nearest pixel of each."""
    shown = (torch.arange(padded) < real).float()
    return int(F.interpolate(shown[None, None], size=cells, mode="nearest").sum())


def _axis_position(cells: int, real: int, width: int) -> Tensor:
    """Return (cells, width) float32 sine functions of the place along one axis, in shares of the real cells."""
    share = torch.arange(1, cells + 1, dtype=torch.float32).clamp(max=real) / (real + 1e-6)
    return sines(share.unsqueeze(-1), width, IMAGE_TEMPERATURE)


def sines(places: Tensor, width: int, temperature: int = QUERY_TEMPERATURE) -> Tensor:
    """Return (…, n · width): sine and cosine in turn of n places (…, n), each in ``width`` channels.

    As in DETR the second place comes first, so that of (x, y, …) it is y.
    """
    frequency = torch.arange(width, dtype=torch.float32, device=places.device).div(2, rounding_mode="floor")
    angles = places.unsqueeze(-1) * (2 * math.pi) / temperature ** (2 * frequency / width)
    waves = torch.stack((angles[..., 0::2].sin(), angles[..., 1::2].cos()), dim=-1).flatten(-2)
    if places.shape[-1] > 1:
        waves = torch.cat((waves[..., 1:2, :], waves[..., 0:1, :], waves[..., 2:, :]), dim=-2)
    return waves.flatten(-2).to(places.dtype)
