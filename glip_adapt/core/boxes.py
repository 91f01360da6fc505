"""Convert, scale, flip and clip boxes; measure IoU and GIoU; class-aware NMS.

``boxes_xyxy`` are float32 pixels and include both corners (width = x2 - x1 + 1), as in the public code
(maskrcnn_benchmark/structures/bounding_box.py and csrc/cuda/ml_nms.cu). This file owns that convention: ``to_edges``
converts boxes that leave the library. Only ``generalized_iou`` measures plain coordinate differences, because the
public loss does.

Shape letters: N, M boxes.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.ops import nms

from glip_adapt.core.structures import SizeHW


def xywh_to_xyxy(boxes_xywh: Tensor) -> Tensor:
    """Convert COCO boxes (N, 4) to inclusive corners (N, 4); sides below one pixel count as one pixel."""
    x, y, w, h = boxes_xywh.unbind(-1)
    return torch.stack((x, y, x + (w - 1).clamp(min=0), y + (h - 1).clamp(min=0)), dim=-1)


def xyxy_to_xywh(boxes_xyxy: Tensor) -> Tensor:
    """Convert inclusive corners (N, 4) to COCO boxes (N, 4)."""
    x1, y1, x2, y2 = boxes_xyxy.unbind(-1)
    return torch.stack((x1, y1, x2 - x1 + 1, y2 - y1 + 1), dim=-1)


def to_edges(boxes_xyxy: Tensor) -> Tensor:
    """Convert inclusive corners (N, 4) to edges (N, 4): right and bottom move by one pixel."""
    return boxes_xyxy + boxes_xyxy.new_tensor((0.0, 0.0, 1.0, 1.0))


def from_edges(edges_xyxy: Tensor) -> Tensor:
    """Convert edges (N, 4) to inclusive corners (N, 4), the inverse of ``to_edges``."""
    return edges_xyxy - edges_xyxy.new_tensor((0.0, 0.0, 1.0, 1.0))


def edges_to_xywh(edges_xyxy: Tensor) -> Tensor:
    """Convert edges (N, 4) to COCO boxes (N, 4)."""
    return torch.cat((edges_xyxy[:, :2], edges_xyxy[:, 2:] - edges_xyxy[:, :2]), dim=-1)


def xywh_to_edges(boxes_xywh: Tensor) -> Tensor:
    """Convert COCO boxes (N, 4) to edges (N, 4)."""
    return torch.cat((boxes_xywh[:, :2], boxes_xywh[:, :2] + boxes_xywh[:, 2:]), dim=-1)


def scale(boxes_xyxy: Tensor, from_hw: SizeHW, to_hw: SizeHW) -> Tensor:
    """Scale boxes (N, 4) with an image that is resized from ``from_hw`` to ``to_hw``.

    Corners are scaled without the extra pixel, as in ``BoxList.resize`` of the public code.
    """
    ratio_h, ratio_w = to_hw[0] / from_hw[0], to_hw[1] / from_hw[1]
    return boxes_xyxy * boxes_xyxy.new_tensor((ratio_w, ratio_h, ratio_w, ratio_h))


def flip_horizontal(boxes_xyxy: Tensor, width: float) -> Tensor:
    """Mirror boxes (N, 4) left to right in an image of ``width`` pixels."""
    x1, y1, x2, y2 = boxes_xyxy.unbind(-1)
    return torch.stack((width - 1 - x2, y1, width - 1 - x1, y2), dim=-1)


def clip(boxes_xyxy: Tensor, size_hw: SizeHW) -> Tensor:
    """Move every corner of boxes (N, 4) inside an image of ``size_hw``."""
    limit = boxes_xyxy.new_tensor((size_hw[1] - 1, size_hw[0] - 1)).repeat(2)
    return boxes_xyxy.clamp(min=0).minimum(limit)


def area(boxes_xyxy: Tensor) -> Tensor:
    """Return (N,) areas in square pixels."""
    x1, y1, x2, y2 = boxes_xyxy.unbind(-1)
    return (x2 - x1 + 1) * (y2 - y1 + 1)


def pairwise_iou(boxes_a: Tensor, boxes_b: Tensor) -> Tensor:
    """Return (N, M) intersection over union of (N, 4) and (M, 4) inclusive boxes, in [0, 1]."""
    top_left = torch.maximum(boxes_a[:, None, :2], boxes_b[None, :, :2])
    bottom_right = torch.minimum(boxes_a[:, None, 2:], boxes_b[None, :, 2:])
    intersection = (bottom_right - top_left + 1).clamp(min=0).prod(-1)
    return intersection / (area(boxes_a)[:, None] + area(boxes_b)[None, :] - intersection)


def generalized_iou(boxes_a: Tensor, boxes_b: Tensor) -> Tensor:
    """Return (N,) generalised IoU of matching rows of (N, 4) boxes, in [-1, 1].

    Widths are coordinate differences without the extra pixel, and inverted boxes collapse to a line, as in
    ``GIoULoss`` of the public code (maskrcnn_benchmark/modeling/rpn/loss.py).
    """
    a_min, b_min = boxes_a[:, :2], boxes_b[:, :2]
    a_max, b_max = torch.maximum(boxes_a[:, 2:], a_min), torch.maximum(boxes_b[:, 2:], b_min)
    intersection = (torch.minimum(a_max, b_max) - torch.maximum(a_min, b_min)).clamp(min=0).prod(-1)
    union = (a_max - a_min).prod(-1) + (b_max - b_min).prod(-1) - intersection + 1e-7
    hull = (torch.maximum(a_max, b_max) - torch.minimum(a_min, b_min)).prod(-1) + 1e-7
    return intersection / union - (hull - union) / hull


def class_aware_nms(boxes_xyxy: Tensor, scores: Tensor, labels: Tensor, classes: int, iou_threshold: float) -> Tensor:
    """Suppress boxes that overlap a better box of the same class; return the indices of the others, best score first.

    ``torch.export`` can trace it.

    Args:
        boxes_xyxy: (N, 4) inclusive pixel boxes.
        scores: (N,) in [0, 1].
        labels: (N,) int64 in 0..classes-1.
        classes: number of classes; boxes of different classes never suppress each other.
        iou_threshold: a box is dropped when its IoU with a better box of its class exceeds this.
    """
    # Class by class, because shifting classes apart by a large offset would cost float32 precision. torch.export
    # assumes that two boxes or more survive: two outside of the image are appended, and dropped.
    edges, outside = to_edges(boxes_xyxy), boxes_xyxy.new_tensor(((-2, -2, -1, -1), (-4, -4, -3, -3)))
    last, kept = scores.new_tensor((-1, -1)), [labels.new_empty(0)]
    for label in range(classes) if torch.compiler.is_compiling() else labels.unique().tolist():
        members = (labels == label).nonzero().squeeze(1)
        survivors = nms(torch.cat((edges[members], outside)), torch.cat((scores[members], last)), iou_threshold)
        kept.append(members[survivors[:-2]])
    found = torch.cat(kept)
    return found[scores[found].argsort(descending=True, stable=True)]
