"""``HeadOutput`` → ``Detections``.

Behaviour follows ``ATSSPostProcessor`` in maskrcnn_benchmark/modeling/rpn/inference.py of the public GLIP code, with
the mean over the tokens of a class as its score.

Shape letters: B batch, A anchors over all levels, T tokens, K classes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from glip_adapt.core import boxes
from glip_adapt.core.structures import Detections, SizeHW
from glip_adapt.trunks.glip import anchors as codec
from glip_adapt.trunks.glip.head import HeadOutput

SCORE_THRESHOLD = 0.05  # on the class score, before centerness
CANDIDATES_PER_LEVEL = 1000
NMS_IOU = 0.6
MAX_DETECTIONS = 100  # of an image, from one caption


@torch.no_grad()
def decode(output: HeadOutput, limit: int = MAX_DETECTIONS) -> list[Detections]:
    """Return the detections of each image, in pixels of that image as the network saw it.

    Args:
        output: predictions for B images.
        limit: how many boxes of an image stay, the best ones; what ties with the last of them stays too.
    """
    class_scores = class_probabilities(output)
    centerness = output.centerness.float().sigmoid()
    return [
        _best(_decode_image(output, class_scores[i], centerness[i], output.box_deltas[i].float(), size_hw), limit)
        for i, size_hw in enumerate(output.image_sizes_hw)
    ]


def class_probabilities(output: HeadOutput) -> Tensor:
    """Return (B, A, K) in [0, 1]: mean over the tokens of each class."""
    weights = output.token_map.float()
    weights = weights / weights.sum(-1, keepdim=True).clamp(min=1)
    return output.token_logits.float().sigmoid() @ weights.transpose(-1, -2)


def _decode_image(
    output: HeadOutput, class_scores: Tensor, centerness: Tensor, deltas: Tensor, size_hw: SizeHW
) -> Detections:
    anchor, label = (class_scores > SCORE_THRESHOLD).nonzero(as_tuple=True)  # by anchor, hence level by level
    score = class_scores[anchor, label] * centerness[anchor]
    level_ends = torch.tensor([h * w for h, w in output.level_shapes_hw], device=anchor.device).cumsum(0)
    counts = torch.searchsorted(anchor, level_ends).diff(prepend=level_ends.new_zeros(1)).tolist()
    best, start = [], 0
    for count in counts:
        best.append(score[start : start + count].topk(min(CANDIDATES_PER_LEVEL, count)).indices + start)
        start += count
    chosen = torch.cat(best)
    anchor, label, scores = anchor[chosen], label[chosen], score[chosen].sqrt()
    boxes_xyxy = boxes.clip(codec.decode(deltas[anchor], output.anchors_xyxy[anchor]), size_hw)
    kept = boxes.class_aware_nms(boxes_xyxy, scores, label, NMS_IOU)
    return Detections(boxes_xyxy[kept], scores[kept], label[kept])


def _best(detections: Detections, limit: int) -> Detections:
    """Return the first of detections that come best first; everything that ties with the last of them stays too."""
    scores = detections.scores
    return detections if len(scores) <= limit else detections.select(scores >= scores[limit - 1])
