"""``HeadOutput`` and targets → the three losses of GLIP.

Assignment: ATSS, arXiv 1912.02424. Behaviour follows ``ATSSLossComputation`` in
maskrcnn_benchmark/modeling/rpn/loss.py of the public GLIP code.

Shape letters: B batch, A anchors over all levels, T tokens, K classes, N boxes, P positive anchors of the batch.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from glip_adapt import boxes
from glip_adapt.model import anchors as codec
from glip_adapt.structures import HeadOutput, Target

CANDIDATES_PER_LEVEL = 9
MIN_INSIDE = 0.01  # pixels that an anchor centre lies inside its box
FOCAL_ALPHA, FOCAL_GAMMA = 0.25, 2.0
BOX_LOSS_WEIGHT = 2.0


def detection_loss(output: HeadOutput, targets: Sequence[Target]) -> dict[str, Tensor]:
    """Return the scalar float32 losses ``token``, ``box`` and ``centerness``; their sum is what is minimised.

    Args:
        output: predictions for B pictures.
        targets: ground truth of the B pictures, on the device of ``output``.

    Raises:
        ValueError: if a label has no token in its caption, which would teach the model nothing.
    """
    matched = torch.stack([assign(output, target) for target in targets])  # (B, A), -1 where unmatched
    positive = matched >= 0
    count = positive.sum().clamp(min=1)
    alignment = token_targets(output, targets, matched)
    token = focal_loss(output.token_logits.float(), alignment, output.token_mask) / count

    box, centerness = _localisation(output, targets, matched)
    return {"token": token, "box": BOX_LOSS_WEIGHT * box, "centerness": centerness / count}


@torch.no_grad()
def assign(output: HeadOutput, target: Target) -> Tensor:
    """Return (A,) int64: the index of the box that each anchor answers for, -1 where it answers for none.

    Of the 9 anchors per level closest to a box, those stay whose IoU reaches mean + standard deviation of all
    candidates and whose centre lies in the box; an anchor wanted by several boxes goes to the one of highest IoU.
    """
    anchors = output.anchors_xyxy
    matched = torch.full((len(anchors),), -1, dtype=torch.int64, device=anchors.device)
    if len(target) == 0:
        return matched
    iou = boxes.pairwise_iou(anchors, target.boxes_xyxy)  # (A, N)
    centres = codec.centres(anchors)
    # Written out rather than torch.cdist: many anchors are equally far, and ties break on the last bit.
    distance = (centres[:, None] - codec.centres(target.boxes_xyxy)[None]).pow(2).sum(-1).sqrt()
    candidates, start = [], 0
    for h, w in output.level_shapes_hw:
        nearest = distance[start : start + h * w].topk(min(CANDIDATES_PER_LEVEL, h * w), dim=0, largest=False).indices
        candidates.append(nearest + start)
        start += h * w
    candidate = torch.cat(candidates)  # (candidates, N) anchor indices
    candidate_iou = iou.gather(0, candidate)
    good = candidate_iou >= candidate_iou.mean(0) + candidate_iou.std(0)
    to_corners = torch.cat(
        (centres[candidate] - target.boxes_xyxy[:, :2], target.boxes_xyxy[:, 2:] - centres[candidate]), dim=-1
    )
    good &= to_corners.amin(-1) > MIN_INSIDE
    wanted = torch.full_like(iou, -1).scatter(0, candidate, torch.where(good, candidate_iou, -1.0))
    best_iou, best_box = wanted.max(1)
    return torch.where(best_iou >= 0, best_box, matched)


def token_targets(output: HeadOutput, targets: Sequence[Target], matched: Tensor) -> Tensor:
    """Return (B, A, T) float, 1 where a positive anchor should align with a token of its class, else 0.

    The public pipeline divides each class's map by its token count, but its collation casts the result to bool
    (maskrcnn_benchmark/data/collate_batch.py), so every token of a class is a full positive.
    """
    per_class = output.token_map.float().expand(len(targets), -1, -1)  # (B, K, T)
    rows = []
    for class_targets, target, match in zip(per_class, targets, matched, strict=True):
        unnamed = target.labels[(class_targets[target.labels].sum(-1) == 0)].unique().tolist()
        if unnamed:
            raise ValueError(f"Labels {unnamed} have no token in their caption. Train only on classes it names.")
        # One more row of zeros, reached by index -1, stands for the anchors without a box.
        per_box = torch.cat((class_targets[target.labels], class_targets.new_zeros(1, class_targets.shape[-1])))
        rows.append(per_box[match])
    return torch.stack(rows)


def focal_loss(logits: Tensor, targets: Tensor, token_mask: Tensor) -> Tensor:
    """Return the summed binary focal loss (arXiv 1708.02002) of (B, A, T) logits over real tokens."""
    probability = logits.sigmoid()
    cross_entropy = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    agreement = probability * targets + (1 - probability) * (1 - targets)
    weight = FOCAL_ALPHA * targets + (1 - FOCAL_ALPHA) * (1 - targets)
    return (weight * (1 - agreement) ** FOCAL_GAMMA * cross_entropy * token_mask.unsqueeze(1)).sum()


def _localisation(output: HeadOutput, targets: Sequence[Target], matched: Tensor) -> tuple[Tensor, Tensor]:
    """Box loss weighted by centerness targets, and summed centerness loss, over the positive anchors."""
    positive = matched >= 0
    deltas, centerness = output.box_deltas[positive].float(), output.centerness[positive].float()
    if not len(deltas):
        return deltas.sum(), centerness.sum()  # zero, but part of the graph
    anchors = output.anchors_xyxy.expand(len(targets), -1, -1)[positive]
    truth = torch.cat([target.boxes_xyxy[m[m >= 0]] for target, m in zip(targets, matched, strict=True)])
    goal = centerness_targets(anchors, truth)
    box = (1 - boxes.generalized_iou(codec.decode(deltas, anchors), truth)) * goal
    return box.sum() / goal.sum(), F.binary_cross_entropy_with_logits(centerness, goal, reduction="sum")


def centerness_targets(anchors_xyxy: Tensor, boxes_xyxy: Tensor) -> Tensor:
    """Return (P,) in (0, 1]: how central each anchor's centre lies in its box (FCOS, arXiv 1904.01355)."""
    centre = codec.centres(anchors_xyxy)
    near, far = centre - boxes_xyxy[:, :2], boxes_xyxy[:, 2:] - centre  # (P, 2) each
    return (torch.minimum(near, far) / torch.maximum(near, far)).prod(-1).sqrt()
