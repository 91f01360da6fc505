"""Decode raw predictions into detections, by steps that ``torch.export`` can trace.

Behaviour follows ``ATSSPostProcessor`` in maskrcnn_benchmark/modeling/rpn/inference.py of the public GLIP code, with
the mean over the tokens of a class as its score.

Shape letters: B batch, A anchors over all levels, T tokens, K classes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from glip_adapt.core import boxes
from glip_adapt.core.structures import Detections
from glip_adapt.trunks.glip import anchors as codec
from glip_adapt.trunks.glip.head import HeadOutput

SCORE_THRESHOLD = 0.05  # on the class score, before centerness
CANDIDATES_PER_LEVEL = 1000
NMS_IOU = 0.6
MAX_DETECTIONS = 100  # of an image, from one caption


@torch.no_grad()
def decode(output: HeadOutput, limit: int = MAX_DETECTIONS) -> list[Detections]:
    """Return the detections of each image, best first, in pixels of that image as the network saw it.

    Boxes include their last pixel here; ``Glip.decode`` turns them into edges. Of an image, ``limit`` boxes are kept,
    and those that tie with the last of them. They are on the CPU.
    """
    classes = output.token_map.shape[1]
    return [_suppress(found, classes, limit) for found in candidates(output)]


@torch.no_grad()
def candidates(output: HeadOutput) -> list[Detections]:
    """Return the boxes of each image before suppression, level by level, in pixels of the image as seen, on the CPU."""
    class_scores, centerness = class_probabilities(output), output.centerness.float().sigmoid()
    best = [_best(output, i, class_scores[i], centerness[i]) for i in range(len(class_scores))]
    # Non-maximum suppression depends on numbers at each step. Where they lie on a GPU, it is waited for once, here.
    boxes_xyxy, scores, labels = (torch.stack(column).cpu() for column in zip(*best, strict=True))
    together = (Detections(*image) for image in zip(boxes_xyxy, scores, labels, strict=True))
    return [found.select(found.scores > 0) for found in together]


def class_probabilities(output: HeadOutput) -> Tensor:
    """Return (B, A, K) in [0, 1]: mean over the tokens of each class."""
    weights = output.token_map.float()
    weights = weights / weights.sum(-1, keepdim=True).clamp(min=1)
    return output.token_logits.float().sigmoid() @ weights.transpose(-1, -2)


def _best(output: HeadOutput, row: int, class_scores: Tensor, centerness: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return boxes (N, 4), scores (N,) and labels (N,) of the best candidates of image ``row``, level by level.

    N is fixed: scores below the threshold become 0, and stand where a level has too few candidates.
    """
    classes = class_scores.shape[1]
    score = torch.where(class_scores > SCORE_THRESHOLD, class_scores * centerness[:, None], 0.0)
    scores, places, start = [], [], 0
    for level in score.split([h * w for h, w in output.level_shapes_hw]):
        best = F.pad(level.flatten(), (0, CANDIDATES_PER_LEVEL)).topk(CANDIDATES_PER_LEVEL)
        scores.append(best.values)
        places.append(best.indices.clamp(max=level.numel() - 1) + start)  # some may be padding
        start += level.numel()
    score, place = torch.cat(scores), torch.cat(places)
    anchor, labels = place // classes, place % classes
    corners = codec.decode(output.box_deltas[row].float()[anchor], output.anchors_xyxy[anchor]).unflatten(1, (2, 2))
    height, width = output.image_sizes_hw[row]
    boxes_xyxy = torch.stack((corners[..., 0].clamp(0, width - 1), corners[..., 1].clamp(0, height - 1)), -1).flatten(1)
    return boxes_xyxy, score.sqrt(), labels


def _suppress(candidates: Detections, classes: int, limit: int) -> Detections:
    """Return the detections of one image."""
    boxes_xyxy, scores, labels = candidates.boxes_xyxy, candidates.scores, candidates.labels
    found = candidates.select(boxes.class_aware_nms(boxes_xyxy, scores, labels, classes, NMS_IOU))
    return found.select(found.scores >= F.pad(found.scores, (0, limit))[limit - 1])
