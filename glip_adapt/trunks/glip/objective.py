"""Compute the three losses of GLIP: token alignment, boxes, centerness.

Assignment: ATSS, arXiv 1912.02424. Behaviour follows ``ATSSLossComputation`` in
maskrcnn_benchmark/modeling/rpn/loss.py of the public GLIP code.

Shape letters: B batch, A anchors over all levels, T tokens, K classes, N boxes, P positive anchors of the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from glip_adapt.core import boxes
from glip_adapt.core.precision import full_precision
from glip_adapt.core.structures import SizeHW, Target, send
from glip_adapt.trunks.alignment import check_labels, focal_loss, total_weight
from glip_adapt.trunks.glip import anchors as codec
from glip_adapt.trunks.glip.head import HeadOutput

CANDIDATES_PER_LEVEL = 9
MIN_INSIDE = 0.01  # pixels that an anchor centre lies inside its box
BOX_LOSS_WEIGHT = 2.0


@dataclass(frozen=True)
class Assignment:
    """The box that each anchor of one image must predict.

    Attributes:
        matched: (A,) int64, index of the box, -1 for anchors without one.
        positive: (P,) int64, the anchors with a box, in anchor order.
        centerness: (P,) float32 in (0, 1], target of each positive anchor.
        weights: (P,) float32 in (0, 1], what each positive anchor counts; None: 1.
        total: () float32 on the CPU, weighted sum of the centerness targets.
    """

    matched: Tensor
    positive: Tensor
    centerness: Tensor
    weights: Tensor | None
    total: Tensor

    @classmethod
    def of(cls, matched: Tensor, anchors_xyxy: Tensor, target: Target) -> Assignment:
        """Return the assignment (A,) of anchors (A, 4) to the N boxes of a target."""
        positive = (matched >= 0).nonzero().flatten()
        own = matched[positive]
        centerness = centerness_targets(anchors_xyxy[positive], target.boxes_xyxy[own])
        weights = None if target.weights is None else target.weights[own]
        counted = centerness if weights is None else centerness * weights
        return cls(matched, positive, centerness, weights, counted.sum().cpu())

    def to(self, device: torch.device | str) -> Assignment:
        """Return the assignment on ``device``, all but ``total``."""
        matched, positive = send(self.matched, device), send(self.positive, device)
        weights = None if self.weights is None else send(self.weights, device)
        return Assignment(matched, positive, send(self.centerness, device), weights, self.total)


@dataclass(frozen=True)
class LossScale:
    """Divisors of the losses of a batch, known before the forward pass.

    The images of a batch may then go through the network one by one: their losses add up to those of the batch.

    Attributes:
        positives: anchors with a box, each as often as it counts, at least 1.
        centerness: sum of their centerness targets, likewise, above 0.
    """

    positives: float
    centerness: float

    @classmethod
    def of(cls, assignments: Sequence[Assignment]) -> LossScale:
        """Return the scale of a batch of images."""
        total = torch.stack([a.total for a in assignments]).sum().item()
        return cls(max(1, total_weight([(len(a.centerness), a.weights) for a in assignments])), total or 1.0)


Prepared = tuple[Target, Assignment]  # of one image


class GlipObjective:
    """The losses of GLIP; anchors are assigned to boxes before the forward pass, on the CPU.

    All that depends on numbers, such as which anchors are positive, is known there. The losses then select by index,
    so that a GPU is not waited for.
    """

    def __init__(self, anchor_scale: int) -> None:
        """Set the side of an anchor over the stride of its level."""
        self.anchor_scale = anchor_scale

    def prepare(self, target: Target, padded_hw: SizeHW) -> Prepared:
        """Return the target with its ATSS assignment, for an image padded to ``padded_hw``."""
        level_shapes_hw, target = codec.level_shapes(padded_hw), target.to("cpu")
        anchors = codec.kept_anchor_grid(level_shapes_hw, torch.device("cpu"), self.anchor_scale)
        return target, assign(anchors, level_shapes_hw, target)

    def scale(self, prepared: Sequence[Prepared]) -> LossScale:
        """Return the divisors of the losses of a batch."""
        return LossScale.of([assignment for _, assignment in prepared])

    def losses(self, output: HeadOutput, prepared: Sequence[Prepared], scale: LossScale) -> dict[str, Tensor]:
        """Return the losses ``token``, ``box`` and ``centerness``; see ``detection_loss``."""
        targets, assignments = zip(*prepared, strict=True)
        return detection_loss(output, targets, scale, assignments)


def detection_loss(
    output: HeadOutput,
    targets: Sequence[Target],
    scale: LossScale | None = None,
    assignments: Sequence[Assignment] | None = None,
) -> dict[str, Tensor]:
    """Return the scalar losses ``token``, ``box`` and ``centerness``; training minimises their sum.

    They are float32, and float64 for a network of that type.

    Args:
        output: predictions for B images.
        targets: ground truth of the B images; on the CPU, their labels are checked.
        scale: of the whole batch, if ``output`` is a part of it; by default that of these B images.
        assignments: of ``assign`` for each target, if known already, on any device.

    Raises:
        ValueError: if the numbers of targets and images differ, or a label is no class or has no token in its caption.
    """
    check_labels(targets, output.token_map, len(output.image_sizes_hw))
    device = output.token_logits.device
    targets = [target.to(device) for target in targets]
    if assignments is None:
        assignments = [assign(output.anchors_xyxy, output.level_shapes_hw, target) for target in targets]
    assignments = [assignment.to(device) for assignment in assignments]
    scale = scale or LossScale.of(assignments)
    matched = torch.stack([a.matched for a in assignments])  # (B, A)
    logits = full_precision(output.token_logits)
    weights = anchor_weights(assignments, logits)
    token = focal_loss(logits, token_targets(output, targets, matched).to(logits), output.token_mask, weights)
    box, centerness = _localisation(output, targets, assignments)
    return {
        "token": token / scale.positives,
        "box": BOX_LOSS_WEIGHT * box / scale.centerness,
        "centerness": centerness / scale.positives,
    }


def answers(output: HeadOutput, prepared: Sequence[Prepared]) -> tuple[Tensor, Tensor]:
    """Return the class that each anchor stands for, (B, A, K) bool, and what the anchor counts, (B, A) float32.

    An anchor without a box counts once, one with a box as much as its centerness target, times the weight of the box.
    """
    classes, device = output.token_map.shape[1], output.candidates.device
    found = torch.zeros(*output.candidates.shape[:2], classes, dtype=torch.bool)
    weights = torch.ones(found.shape[:2])
    for row, count, (target, assignment) in zip(found, weights, prepared, strict=True):
        row[assignment.positive, target.labels[assignment.matched[assignment.positive]]] = True
        counted = assignment.centerness
        count[assignment.positive] = counted if assignment.weights is None else counted * assignment.weights
    return found.to(device), weights.to(device)


@torch.no_grad()
def assign(anchors_xyxy: Tensor, level_shapes_hw: Sequence[SizeHW], target: Target) -> Assignment:
    """Return the ATSS assignment of N boxes to the anchors (A, 4), in pixels, of levels (h, w), finest first.

    Candidates of a box are the 9 closest anchors per level. Those stay whose IoU reaches mean + standard deviation of
    all candidates, and whose centre lies in the box. An anchor of several boxes goes to the one of highest IoU.
    """
    matched = torch.full((len(anchors_xyxy),), -1, dtype=torch.int64, device=anchors_xyxy.device)
    if len(target) == 0:
        return Assignment.of(matched, anchors_xyxy, target)
    iou = boxes.pairwise_iou(anchors_xyxy, target.boxes_xyxy)  # (A, N)
    centres = codec.centres(anchors_xyxy)
    # Written out rather than torch.cdist: many anchors are equally far, and ties break on the last bit.
    distance = (centres[:, None] - codec.centres(target.boxes_xyxy)[None]).pow(2).sum(-1).sqrt()
    candidates, start = [], 0
    for h, w in level_shapes_hw:
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
    return Assignment.of(torch.where(best_iou >= 0, best_box, matched), anchors_xyxy, target)


def token_targets(output: HeadOutput, targets: Sequence[Target], matched: Tensor) -> Tensor:
    """Return (B, A, T) float, 1 where a positive anchor should align with a token of its class, else 0.

    The public pipeline divides each class's map by its token count, but its collation casts the result to bool
    (maskrcnn_benchmark/data/collate_batch.py), so every token of a class is a full positive.
    """
    per_class = output.token_map.float().expand(len(targets), -1, -1)  # (B, K, T)
    rows = []
    for class_targets, target, match in zip(per_class, targets, matched, strict=True):
        # One more row of zeros, reached by index -1, stands for the anchors without a box.
        per_box = torch.cat((class_targets[target.labels], class_targets.new_zeros(1, class_targets.shape[-1])))
        rows.append(per_box[match])
    return torch.stack(rows)


def anchor_weights(assignments: Sequence[Assignment], like: Tensor) -> Tensor | None:
    """Return what each anchor counts, (B, A), 1 for those without a box; None if all boxes of the images count 1."""
    if all(assignment.weights is None for assignment in assignments):
        return None
    weights = like.new_ones(len(assignments), len(assignments[0].matched))
    for row, assignment in zip(weights, assignments, strict=True):
        if assignment.weights is not None:
            row[assignment.positive] = assignment.weights.to(like)
    return weights


def _localisation(
    output: HeadOutput, targets: Sequence[Target], assignments: Sequence[Assignment]
) -> tuple[Tensor, Tensor]:
    """Return box loss weighted by centerness targets, and centerness loss, both summed over the positive anchors."""
    pairs = list(zip(targets, assignments, strict=True))
    truth = torch.cat([target.boxes_xyxy[a.matched[a.positive]] for target, a in pairs])
    anchors = torch.cat([output.anchors_xyxy[a.positive] for a in assignments])
    rows = torch.cat([a.positive + i * len(output.anchors_xyxy) for i, a in enumerate(assignments)])  # of the batch
    decoded = codec.decode(full_precision(output.box_deltas.flatten(0, 1).index_select(0, rows)), anchors)
    centerness = full_precision(output.centerness.flatten().index_select(0, rows))
    goal = torch.cat([a.centerness for a in assignments]).to(centerness)
    weights = anchor_weights(assignments, goal)
    counted = None if weights is None else weights.flatten()[rows]
    return (
        ((1 - boxes.generalized_iou(decoded, truth)) * (goal if counted is None else goal * counted)).sum(),
        F.binary_cross_entropy_with_logits(centerness, goal, counted, reduction="sum"),
    )


def centerness_targets(anchors_xyxy: Tensor, boxes_xyxy: Tensor) -> Tensor:
    """Return (P,) in (0, 1]: how central each anchor's centre lies in its box (FCOS, arXiv 1904.01355)."""
    centre = codec.centres(anchors_xyxy)
    near, far = centre - boxes_xyxy[:, :2], boxes_xyxy[:, 2:] - centre  # (P, 2) each
    return (torch.minimum(near, far) / torch.maximum(near, far)).prod(-1).sqrt()
