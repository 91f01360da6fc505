"""Ground truth as Grounding DINO sees it: boxes in shares of the image, and the tokens of their classes.

Shape letters: T tokens, K classes, N boxes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor
from torchvision.ops import box_convert

from glip_adapt.core import boxes
from glip_adapt.core.structures import SizeHW, Target

Match = tuple[Tensor, Tensor]  # indices of queries and of their boxes, int64 each


@dataclass(frozen=True)
class Truth:
    """Boxes of one image, as the losses see them.

    Attributes:
        boxes: (N, 4) float, (centre x, centre y, width, height) in shares of the image without padding.
        tokens: (N, T) bool, True for the tokens of the class of each box.
        weights: (N,) float, what each box counts; None: 1.
    """

    boxes: Tensor
    tokens: Tensor
    weights: Tensor | None = None


def truths_of(targets: Sequence[Target], sizes_hw: Sequence[SizeHW], token_map: Tensor, like: Tensor) -> list[Truth]:
    """Return the truth of each image, on the device and in the precision of ``like``.

    Args:
        targets: of B images.
        sizes_hw: real sizes of the images in pixels, as in ``ImageBatch``.
        token_map: (B or 1, K, T) bool, as in ``Tokens``.
        like: any tensor.
    """
    maps, truths = token_map.expand(len(targets), -1, -1), []
    for target, (height, width), class_map in zip(targets, sizes_hw, maps, strict=True):
        edges = boxes.to_edges(target.boxes_xyxy.to(like)) / like.new_tensor((width, height)).repeat(2)
        tokens = class_map[target.labels.to(class_map.device)]
        weights = None if target.weights is None else target.weights.to(like)
        truths.append(Truth(box_convert(edges, "xyxy", "cxcywh"), tokens, weights))
    return truths
