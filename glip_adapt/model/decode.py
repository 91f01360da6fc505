"""``HeadOutput`` → ``Detections``.

Behaviour follows ``ATSSPostProcessor`` in maskrcnn_benchmark/modeling/rpn/inference.py of the public GLIP code, with
the mean over the tokens of a class as its score.

Shape letters: B batch, A anchors over all levels, T tokens, K classes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from glip_adapt import boxes
from glip_adapt.model import anchors as codec
from glip_adapt.structures import Detections, HeadOutput, SizeHW

SCORE_THRESHOLD = 0.05  # on the class score, before centerness
CANDIDATES_PER_LEVEL = 1000
NMS_IOU = 0.6
MAX_DETECTIONS = 100


@torch.no_grad()
def decode(output: HeadOutput) -> list[Detections]:
    """Return the detections of each picture, in pixels of that picture as the network saw it."""
    class_scores = class_probabilities(output)
    centerness = output.centerness.float().sigmoid()
    return [
        _decode_picture(output, class_scores[i], centerness[i], output.box_deltas[i].float(), size_hw)
        for i, size_hw in enumerate(output.sizes_hw)
    ]


def class_probabilities(output: HeadOutput) -> Tensor:
    """Return (B, A, K) in [0, 1]: mean over the tokens of each class."""
    weights = output.token_map.float()
    weights = weights / weights.sum(-1, keepdim=True).clamp(min=1)
    return output.token_logits.float().sigmoid() @ weights.transpose(-1, -2)


def merge(parts: list[Detections]) -> Detections:
    """Return the best 100 of several detections of one picture; parts must not share classes."""
    together = Detections(
        torch.cat([part.boxes_xyxy for part in parts]),
        torch.cat([part.scores for part in parts]),
        torch.cat([part.labels for part in parts]),
    )
    return _best(together)


def _decode_picture(
    output: HeadOutput, class_scores: Tensor, centerness: Tensor, deltas: Tensor, size_hw: SizeHW
) -> Detections:
    candidates, start = [], 0
    for h, w in output.level_shapes_hw:
        level = slice(start, start + h * w)
        anchor, label = (class_scores[level] > SCORE_THRESHOLD).nonzero(as_tuple=True)
        score = class_scores[level][anchor, label] * centerness[level][anchor]
        score, best = score.topk(min(CANDIDATES_PER_LEVEL, len(score)))
        anchor, label = anchor[best] + start, label[best]
        boxes_xyxy = boxes.clip(codec.decode(deltas[anchor], output.anchors_xyxy[anchor]), size_hw)
        candidates.append(Detections(boxes_xyxy, score.sqrt(), label))
        start += h * w
    together = Detections(
        torch.cat([c.boxes_xyxy for c in candidates]),
        torch.cat([c.scores for c in candidates]),
        torch.cat([c.labels for c in candidates]),
    )
    kept = boxes.class_aware_nms(together.boxes_xyxy, together.scores, together.labels, NMS_IOU)
    return _best(Detections(together.boxes_xyxy[kept], together.scores[kept], together.labels[kept]))


def _best(detections: Detections) -> Detections:
    """At most 100, best first; everything that ties with the hundredth stays too."""
    order = detections.scores.argsort(descending=True, stable=True)
    scores = detections.scores[order]
    if len(scores) > MAX_DETECTIONS:
        order = order[scores >= scores[MAX_DETECTIONS - 1]]
    return Detections(detections.boxes_xyxy[order], detections.scores[order], detections.labels[order])
