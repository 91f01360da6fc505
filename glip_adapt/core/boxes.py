"""Pure box maths on inclusive pixel boxes: conversions, scaling, flipping, clipping, IoU, GIoU, class-aware NMS.

``boxes_xyxy`` include both corners (width = x2 - x1 + 1), the convention of the public code
(maskrcnn_benchmark/structures/bounding_box.py and csrc/cuda/ml_nms.cu). Only ``generalized_iou`` measures plain
coordinate differences, because the public loss does.

Shape letters: N, M boxes.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.ops import nms

from glip_adapt.core.structures import SizeHW


def xywh_to_xyxy(boxes_xywh: Tensor) -> Tensor:
    """Return (N, 4) inclusive corners of COCO boxes (N, 4); sides below one pixel count as one pixel."""
    x, y, w, h = boxes_xywh.unbind(-1)
    return torch.stack((x, y, x + (w - 1).clamp(min=0), y + (h - 1).clamp(min=0)), dim=-1)


def xyxy_to_xywh(boxes_xyxy: Tensor) -> Tensor:
    """Return (N, 4) COCO boxes of inclusive corners (N, 4)."""
    x1, y1, x2, y2 = boxes_xyxy.unbind(-1)
    return torch.stack((x1, y1, x2 - x1 + 1, y2 - y1 + 1), dim=-1)


def scale(boxes_xyxy: Tensor, from_hw: SizeHW, to_hw: SizeHW) -> Tensor:
    """Return (N, 4) boxes of a picture of size ``from_hw`` after it has been resized to ``to_hw``.

    Corners are scaled as they are, as ``BoxList.resize`` of the public code does.
    """
    ratio_h, ratio_w = to_hw[0] / from_hw[0], to_hw[1] / from_hw[1]
    return boxes_xyxy * boxes_xyxy.new_tensor((ratio_w, ratio_h, ratio_w, ratio_h))


def flip_horizontal(boxes_xyxy: Tensor, width: int) -> Tensor:
    """Return (N, 4) boxes after mirroring a picture of ``width`` pixels left to right."""
    x1, y1, x2, y2 = boxes_xyxy.unbind(-1)
    return torch.stack((width - 1 - x2, y1, width - 1 - x1, y2), dim=-1)


def clip(boxes_xyxy: Tensor, size_hw: SizeHW) -> Tensor:
    """Return (N, 4) boxes with every corner moved inside a picture of ``size_hw``."""
    limit = boxes_xyxy.new_tensor((size_hw[1] - 1, size_hw[0] - 1)).repeat(2)
    return boxes_xyxy.clamp(min=0).minimum(limit)


def area(boxes_xyxy: Tensor) -> Tensor:
    """Return (N,) areas in pixels."""
    x1, y1, x2, y2 = boxes_xyxy.unbind(-1)
    return (x2 - x1 + 1) * (y2 - y1 + 1)


def pairwise_iou(boxes_a: Tensor, boxes_b: Tensor) -> Tensor:
    """Return (N, M) intersection over union of (N, 4) and (M, 4) inclusive boxes, in [0, 1]."""
    top_left = torch.maximum(boxes_a[:, None, :2], boxes_b[None, :, :2])
    bottom_right = torch.minimum(boxes_a[:, None, 2:], boxes_b[None, :, 2:])
    intersection = (bottom_right - top_left + 1).clamp(min=0).prod(-1)
    return intersection / (area(boxes_a)[:, None] + area(boxes_b)[None, :] - intersection)


def generalized_iou(boxes_a: Tensor, boxes_b: Tensor) -> Tensor:
    """Return (N,) generalised IoU of matching rows, in [-1, 1].

    Measured on coordinate differences without the extra pixel, and with inverted predictions collapsed to a line,
    as in ``GIoULoss`` of the public code (maskrcnn_benchmark/modeling/rpn/loss.py).
    """
    a_min, b_min = boxes_a[:, :2], boxes_b[:, :2]
    a_max, b_max = torch.maximum(boxes_a[:, 2:], a_min), torch.maximum(boxes_b[:, 2:], b_min)
    intersection = (torch.minimum(a_max, b_max) - torch.maximum(a_min, b_min)).clamp(min=0).prod(-1)
    union = (a_max - a_min).prod(-1) + (b_max - b_min).prod(-1) - intersection + 1e-7
    hull = (torch.maximum(a_max, b_max) - torch.minimum(a_min, b_min)).prod(-1) + 1e-7
    return intersection / union - (hull - union) / hull


def class_aware_nms(boxes_xyxy: Tensor, scores: Tensor, labels: Tensor, iou_threshold: float) -> Tensor:
    """Return indices (int64, best score first) that survive non-maximum suppression within each class.

    Args:
        boxes_xyxy: (N, 4) inclusive pixel boxes.
        scores: (N,) in [0, 1].
        labels: (N,) int64 class of each box; boxes of different classes never suppress each other.
        iou_threshold: a box is dropped when its IoU with a better box of its class exceeds this.
    """
    # One more pixel to the right and below turns inclusive boxes into the half-open ones that torchvision measures;
    # class by class, since shifting classes apart by a large offset would cost float32 precision.
    half_open = boxes_xyxy + boxes_xyxy.new_tensor((0.0, 0.0, 1.0, 1.0))
    keep = [torch.empty(0, dtype=torch.int64, device=boxes_xyxy.device)]
    for label in labels.unique():
        members = (labels == label).nonzero().squeeze(1)
        keep.append(members[nms(half_open[members], scores[members], iou_threshold)])
    kept = torch.cat(keep)
    return kept[scores[kept].argsort(descending=True, stable=True)]
