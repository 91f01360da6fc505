"""Resize, flip and pad: the picture and its boxes move together.

GLIP, arXiv 2112.03857; maskrcnn_benchmark/data/transforms/{transforms,build}.py of the public code: PIL bilinear on
uint8, resize first, then flip. Channel order and pixel statistics belong to the model, not here.

Training draws from a finite set of *views* of a picture, so that what a frozen network makes of a view can be kept.

Shape letters: B batch, H W padded pixels, h w real pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from glip_adapt.core import boxes
from glip_adapt.core.structures import ImageBatch, SizeHW, Target

DIVISOR = 32  # pixels, the stride of the backbone


@dataclass(frozen=True)
class View:
    """One way to look at a picture.

    Attributes:
        short_side: length of the shorter side after resizing, in pixels, before the limit on the longer one.
        flip: whether the picture is mirrored left to right.
    """

    short_side: int
    flip: bool

    def __post_init__(self) -> None:
        if self.short_side < 1:
            raise ValueError(f"A view needs a short side of at least 1 pixel; got {self.short_side}.")


def training_views(short_sides: Sequence[int], flip: bool) -> tuple[View, ...]:
    """Return every view that training draws from, each as likely as the next.

    Args:
        short_sides: lengths of the shorter side, in pixels.
        flip: whether each length also comes mirrored.

    Raises:
        ValueError: if there is no length, or one is below 1.
    """
    if not short_sides:
        raise ValueError("Training needs at least one short side; got none. The public recipe has 480 560 640 720 800.")
    return tuple(View(side, mirrored) for side in short_sides for mirrored in ((False, True) if flip else (False,)))


def resize_shape(size_hw: SizeHW, short_side: int, max_long_side: int) -> SizeHW:
    """Return the (height, width) after resizing a picture of ``size_hw``, with the rounding of the public code.

    The shorter side becomes ``short_side``, or less where the longer one would exceed ``max_long_side``; the longer
    side is rounded down, and no side falls below one pixel.
    """
    short, long = min(size_hw), max(size_hw)
    if long * short_side > max_long_side * short:
        short_side = max(1, round(max_long_side * short / long))
    resized_long = short_side * long // short
    return (resized_long, short_side) if size_hw[0] > size_hw[1] else (short_side, resized_long)


def apply_view(image: Image.Image, target: Target, view: View, max_long_side: int = 1333) -> tuple[Tensor, Target]:
    """Return the picture as ``view`` shows it, and its boxes moved along.

    Args:
        image: RGB picture.
        target: ground truth in pixels of ``image``.
        view: the short side and whether to mirror.
        max_long_side: upper limit of the longer side, in pixels.

    Returns:
        (3, h, w) uint8 RGB, 0–255, and the ground truth in pixels of that tensor.

    Raises:
        ValueError: if the picture is not RGB.
    """
    if image.mode != "RGB":
        raise ValueError(f"Expected an RGB picture, got mode {image.mode!r}. Open it with data.images.load_rgb.")
    size_hw = (image.height, image.width)
    height, width = resize_shape(size_hw, view.short_side, max_long_side)
    image = image.resize((width, height), Image.Resampling.BILINEAR)
    if view.flip:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()  # (h, w, 3) → (3, h, w)
    return pixels, view_target(target, size_hw, view, max_long_side)


def view_target(target: Target, size_hw: SizeHW, view: View, max_long_side: int = 1333) -> Target:
    """Return the ground truth of a picture of ``size_hw`` in pixels of the view; the picture itself is not needed."""
    seen_hw = resize_shape(size_hw, view.short_side, max_long_side)
    boxes_xyxy = boxes.scale(target.boxes_xyxy, size_hw, seen_hw)
    return Target(boxes.flip_horizontal(boxes_xyxy, seen_hw[1]) if view.flip else boxes_xyxy, target.labels)


def padded_shape(size_hw: SizeHW) -> SizeHW:
    """Return the (height, width) to which the network's strides pad a picture: the next multiples of 32."""
    return -(-size_hw[0] // DIVISOR) * DIVISOR, -(-size_hw[1] // DIVISOR) * DIVISOR


def collate(images: Sequence[Tensor]) -> ImageBatch:
    """Return one batch of pictures, padded with zeros on the right and at the bottom to multiples of 32.

    Args:
        images: B tensors (3, h, w) uint8 RGB; sizes may differ.

    Raises:
        ValueError: if there is no picture, or one is not (3, h, w) uint8.
    """
    if not images:
        raise ValueError("A batch needs at least one picture; got none.")
    for image in images:
        if image.ndim != 3 or image.shape[0] != 3 or image.dtype != torch.uint8:
            raise ValueError(f"Expected (3, h, w) uint8, got {tuple(image.shape)} {image.dtype}. Use apply_view first.")
    sizes_hw = tuple((int(image.shape[1]), int(image.shape[2])) for image in images)
    height, width = padded_shape((max(h for h, _ in sizes_hw), max(w for _, w in sizes_hw)))
    pixels = images[0].new_zeros(len(images), 3, height, width)
    for slot, image in zip(pixels, images, strict=True):
        slot[:, : image.shape[1], : image.shape[2]] = image
    return ImageBatch(pixels, sizes_hw)
