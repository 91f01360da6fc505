"""Resize, flip and pad images, and move their boxes along.

GLIP, arXiv 2112.03857; maskrcnn_benchmark/data/transforms/{transforms,build}.py of the public code: PIL bilinear on
uint8, resize first, then flip. Channel order and pixel statistics belong to the model, not here.

Training draws from a finite set of views of an image: features of a frozen network are cached per view.

Shape letters: B batch, H W padded pixels, h w real pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from glip_adapt.core import boxes
from glip_adapt.core.settings import Views
from glip_adapt.core.structures import DIVISOR, ImageBatch, SizeHW, Target


@dataclass(frozen=True)
class View:
    """Size and orientation in which an image is shown.

    Attributes:
        short_side: length of the shorter side after resizing, in pixels; less if the longer side would be too long.
        flip: whether the image is mirrored left to right.
        part: left, top, right and bottom edge of what is shown, in pixels of the image; None for all of it.
    """

    short_side: int
    flip: bool
    part: tuple[int, int, int, int] | None = None

    def part_of(self, size_hw: SizeHW) -> tuple[int, int, int, int]:
        """Return left, top, right and bottom edge of what is shown of an image of (height, width) ``size_hw``."""
        return self.part or (0, 0, size_hw[1], size_hw[0])

    def seen_hw(self, size_hw: SizeHW, max_long_side: int) -> SizeHW:
        """Return the (height, width) of the view of an image of ``size_hw``, after resizing."""
        left, top, right, bottom = self.part_of(size_hw)
        return resize_shape((bottom - top, right - left), self.short_side, max_long_side)

    def __post_init__(self) -> None:
        if self.short_side < 1:
            raise ValueError(f"A view needs a short side of at least 1 pixel; got {self.short_side}.")


@dataclass(frozen=True)
class ShownView:
    """One of several views of an image, and which boxes to keep: the square root of their area, pixels of the view."""

    view: View
    areas: tuple[float, float]


def training_views(short_sides: Sequence[int], flip: bool) -> tuple[View, ...]:
    """Return the views that training draws from with equal probability.

    Each has one of ``short_sides``, in pixels; with ``flip``, each length also comes mirrored.

    Raises:
        ValueError: if there is no length, or one is below 1.
    """
    if not short_sides:
        raise ValueError("Training needs at least one short side; got none. The public recipe has 480 560 640 720 800.")
    return tuple(View(side, mirrored) for side in short_sides for mirrored in ((False, True) if flip else (False,)))


def views_of(size_hw: SizeHW, views: Views, short_side: int) -> list[ShownView]:
    """Return the views of an image of (height, width) ``size_hw``, the whole first.

    Without sizes, the views have ``short_side``. The tiles of an image lie evenly, from edge to edge; an image that is
    no larger than a tile has none.
    """
    sizes = views.sizes or (short_side,)
    ranges = views.areas or ((0.0, math.inf),) * len(sizes)
    return [
        ShownView(View(size, mirrored, part), areas)
        for part in (None, *_tiles(size_hw, views.tile or max(size_hw), views.overlap))
        for size, areas in zip(sizes, ranges, strict=True)
        for mirrored in ((False, True) if views.flip else (False,))
    ]


def _tiles(size_hw: SizeHW, side: int, overlap: float) -> list[tuple[int, int, int, int]]:
    """Return left, top, right and bottom edge of each tile, row by row; none if one tile holds the image."""
    (tops, height), (lefts, width) = (_starts(length, side, overlap) for length in size_hw)
    tiles = [(left, top, left + width, top + height) for top in tops for left in lefts]
    return tiles if len(tiles) > 1 else []


def _starts(length: int, side: int, overlap: float) -> tuple[list[int], int]:
    """Return where the tiles of a row begin, and their length."""
    side = min(side, length)
    steps = math.ceil((length - side) / (side * (1 - overlap)))
    return [round(i * (length - side) / max(1, steps)) for i in range(steps + 1)], side


def resize_shape(size_hw: SizeHW, short_side: int, max_long_side: int) -> SizeHW:
    """Return the (height, width) after resizing an image of ``size_hw``, rounded like the public code.

    The shorter side becomes ``short_side``, or less if the longer side would exceed ``max_long_side``. The longer side
    is rounded down. Both sides have at least one pixel.
    """
    short, long = min(size_hw), max(size_hw)
    if long * short_side > max_long_side * short:
        short_side = max(1, round(max_long_side * short / long))
    resized_long = short_side * long // short
    return (resized_long, short_side) if size_hw[0] > size_hw[1] else (short_side, resized_long)


def view_image(image: Image.Image, view: View, max_long_side: int = 1333) -> Tensor:
    """Return the pixels of an RGB image in a view, (3, h, w) uint8 RGB, 0–255.

    The longer side has at most ``max_long_side`` pixels.

    Raises:
        ValueError: if the image is not RGB.
    """
    if image.mode != "RGB":
        raise ValueError(f"Expected an RGB image, got mode {image.mode!r}. Open it with data.images.load_rgb.")
    height, width = view.seen_hw((image.height, image.width), max_long_side)
    image = image.resize((width, height), Image.Resampling.BILINEAR, box=view.part)
    if view.flip:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()  # (h, w, 3) → (3, h, w)


def view_target(target: Target, size_hw: SizeHW, view: View, max_long_side: int = 1333) -> Target:
    """Return the ground truth of an image of (height, width) ``size_hw`` in pixels of its view."""
    seen_hw = resize_shape(size_hw, view.short_side, max_long_side)
    boxes_xyxy = boxes.scale(target.boxes_xyxy, size_hw, seen_hw)
    return replace(target, boxes_xyxy=boxes.flip_horizontal(boxes_xyxy, seen_hw[1]) if view.flip else boxes_xyxy)


def padded_shape(size_hw: SizeHW) -> SizeHW:
    """Return the (height, width) of an image after padding: the next multiples of 32, the largest stride."""
    return -(-size_hw[0] // DIVISOR) * DIVISOR, -(-size_hw[1] // DIVISOR) * DIVISOR


def collate(images: Sequence[Tensor]) -> ImageBatch:
    """Return one batch of images, padded with zeros on the right and at the bottom to multiples of 32.

    The B images are tensors (3, h, w) uint8 RGB; sizes may differ.

    Raises:
        ValueError: if there is no image, or one is not (3, h, w) uint8.
    """
    if not images:
        raise ValueError("A batch needs at least one image; got none.")
    for image in images:
        if image.ndim != 3 or image.shape[0] != 3 or image.dtype != torch.uint8:
            raise ValueError(f"Expected (3, h, w) uint8, got {tuple(image.shape)} {image.dtype}. Use view_image first.")
    sizes_hw = tuple((int(image.shape[1]), int(image.shape[2])) for image in images)
    height, width = padded_shape((max(h for h, _ in sizes_hw), max(w for _, w in sizes_hw)))
    pixels = images[0].new_zeros(len(images), 3, height, width)
    for slot, image in zip(pixels, images, strict=True):
        slot[:, : image.shape[1], : image.shape[2]] = image
    return ImageBatch(pixels, sizes_hw)
