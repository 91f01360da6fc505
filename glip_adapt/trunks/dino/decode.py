"""Turn raw predictions into detections: the best pairs of query and class; there is no suppression.

As mmdetection does (mmdet/models/dense_heads/grounding_dino_head.py, ``_predict_by_feat_single``).

Shape letters: B batch, Q queries, T tokens, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torchvision.ops import box_convert

from glip_adapt.core.precision import full_precision
from glip_adapt.core.structures import Detections, SizeHW
from glip_adapt.trunks.dino.output import DinoOutput

DETECTIONS = 300  # kept per image


def decode(output: DinoOutput, sizes_hw: Sequence[SizeHW], limit: int = DETECTIONS) -> list[Detections]:
    """Return the best ``limit`` detections of each image; boxes are edges in pixels of images of ``sizes_hw``."""
    scores, found = class_scores(output), []
    for boxes, score, size_hw in zip(output.layers[-1].boxes, scores, sizes_hw, strict=True):
        best = score.flatten().topk(min(limit, score.numel()))
        query, label = best.indices // score.shape[1], best.indices % score.shape[1]
        edges = box_convert(full_precision(boxes)[query], "cxcywh", "xyxy").clamp(0, 1)
        boxes_xyxy = edges * edges.new_tensor((size_hw[1], size_hw[0])).repeat(2)
        found.append(Detections(boxes_xyxy, best.values, label))
    return found


def class_scores(output: DinoOutput) -> Tensor:
    """Return (B, Q, K) in [0, 1]: mean over the tokens of each class."""
    probability = full_precision(output.layers[-1].logits).sigmoid()
    weights = output.token_map.to(probability)
    return probability @ (weights / weights.sum(-1, keepdim=True).clamp(min=1)).transpose(-1, -2)
