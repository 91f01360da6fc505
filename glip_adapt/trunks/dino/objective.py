"""The losses of Grounding DINO: each box is matched with one query, in every decoder layer and among the proposals.

Set matching: DETR, arXiv 2005.12872, section 3.1. Costs and weights are those of transformers (GroundingDinoConfig,
loss/loss_grounding_dino.py), with three corrections: captions of a batch may differ, proposals learn, and the scores of
proposals are those that chose them.

Shape letters: B batch, Q queries, T tokens, K classes, N boxes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torchvision.ops import box_convert, generalized_box_iou

from glip_adapt.core.precision import full_precision
from glip_adapt.core.structures import SizeHW, Target
from glip_adapt.trunks.alignment import FOCAL_ALPHA, FOCAL_GAMMA, check_labels, focal_loss, total_weight
from glip_adapt.trunks.dino.output import DinoOutput, NoisyOutput, QueryOutput
from glip_adapt.trunks.dino.truth import Match, Truth, truths_of

TOKEN_COST, BOX_COST, GIOU_COST = 1.0, 5.0, 2.0  # of a pair of box and query
TOKEN_WEIGHT, BOX_WEIGHT, GIOU_WEIGHT = 2.0, 5.0, 2.0  # of the losses


class DinoObjective:
    """The losses of a batch; boxes are matched after the forward pass."""

    def prepare(self, target: Target, padded_hw: SizeHW) -> Target:  # boxes are in shares of the image
        """Return the target on the CPU: nothing else is known before the forward pass."""
        return target.to("cpu")

    def scale(self, prepared: Sequence[Target]) -> float:
        """Return the number of boxes of a batch, each as often as it counts, at least 1."""
        return max(1, total_weight([(len(target), target.weights) for target in prepared]))

    def losses(self, output: DinoOutput, prepared: Sequence[Target], scale: float) -> dict[str, Tensor]:
        """Return the losses ``token``, ``box`` (L1) and ``giou``, each summed over decoder layers and proposals.

        Where queries started from the truth, ``denoising`` is the sum of their three.

        Raises:
            ValueError: if the numbers of targets and images differ, or a label is no class or has no token.
        """
        check_labels(prepared, output.token_map, len(output.image_sizes_hw))
        truths = truths_of(prepared, output.image_sizes_hw, output.token_map, output.layers[-1].boxes)
        stages = (output.proposals, *output.layers)
        matches = match(stages, truths)
        pairs = zip(stages, matches, strict=True)
        parts = [query_losses(stage, truths, found, output.token_mask) for stage, found in pairs]
        losses = weighed(torch.stack(column).sum() / scale for column in zip(*parts, strict=True))
        if output.noisy is not None:
            losses["denoising"] = denoising_loss(output.noisy, truths, output.token_mask) / scale
        return losses


def weighed(parts: Iterable[Tensor]) -> dict[str, Tensor]:
    """Return losses by name, each with its weight: of tokens, of boxes by L1, of boxes by GIoU."""
    token, box, giou = parts
    return {"token": TOKEN_WEIGHT * token, "box": BOX_WEIGHT * box, "giou": GIOU_WEIGHT * giou}


@torch.no_grad()
def answers(output: DinoOutput, prepared: Sequence[Target]) -> tuple[Tensor, Tensor]:
    """Return the class that each query stands for, (B, Q, K) bool, and what the query counts, (B, Q) float."""
    last = output.layers[-1]
    truths = truths_of(prepared, output.image_sizes_hw, output.token_map, last.boxes)
    (matches,) = match([last], truths)
    found = torch.zeros(*last.logits.shape[:2], output.token_map.shape[1], dtype=torch.bool, device=last.logits.device)
    for row, target, (query, box) in zip(found, prepared, matches, strict=True):
        row[query, target.labels.to(query.device)[box]] = True
    return found, query_weights(truths, matches, full_precision(last.logits))


@torch.no_grad()
def match(stages: Sequence[QueryOutput], truths: Sequence[Truth]) -> list[list[Match]]:
    """Return for each stage and image the queries whose pairs with the boxes cost least in all.

    Numbers decide here, so that a GPU is waited for: once, for all stages and images.
    """
    costs = [[cost(s.logits[i], s.boxes[i], truth) for i, truth in enumerate(truths)] for s in stages]
    flat = torch.cat([c.flatten() for row in costs for c in row]).cpu()
    parts = iter(flat.split([c.numel() for row in costs for c in row]))
    device = stages[0].boxes.device
    return [[_assign(next(parts).view(c.shape), device) for c in row] for row in costs]


def _assign(costs: Tensor, device: torch.device) -> Match:
    query, box = (torch.as_tensor(rows, dtype=torch.int64) for rows in linear_sum_assignment(costs.numpy()))
    return query.to(device), box.to(device)


def cost(logits: Tensor, query_boxes: Tensor, truth: Truth) -> Tensor:
    """Return (Q, N), the cost of each pair of a query and a box, for logits (Q, T) and boxes (Q, 4)."""
    probability, query_boxes = full_precision(logits).sigmoid(), full_precision(query_boxes)
    as_other = (1 - FOCAL_ALPHA) * probability**FOCAL_GAMMA * -(1 - probability + 1e-8).log()
    as_own = FOCAL_ALPHA * (1 - probability) ** FOCAL_GAMMA * -(probability + 1e-8).log()
    tokens = truth.tokens.to(probability)
    token = (as_own - as_other) @ (tokens / tokens.sum(-1, keepdim=True)).transpose(0, 1)
    distance = (query_boxes[:, None] - truth.boxes).abs().sum(-1)
    overlap = generalized_box_iou(*(box_convert(b, "cxcywh", "xyxy") for b in (query_boxes, truth.boxes)))
    total = TOKEN_COST * token + BOX_COST * distance - GIOU_COST * overlap
    highest = torch.finfo(total.dtype).max  # of pairs that cannot be measured: taken last
    return total.nan_to_num(highest, highest, highest)


def query_losses(
    stage: QueryOutput, truths: Sequence[Truth], matches: Sequence[Match], token_mask: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the losses of one stage over all images, not yet divided: tokens, boxes by L1, boxes by GIoU."""
    logits, predicted = full_precision(stage.logits), full_precision(stage.boxes)
    wanted = torch.zeros_like(logits)
    for i, (truth, (query, box)) in enumerate(zip(truths, matches, strict=True)):
        wanted[i, query] = truth.tokens[box].to(wanted)
    own = torch.cat([predicted[i, query] for i, (query, _) in enumerate(matches)])
    goal = torch.cat([truth.boxes[box] for truth, (_, box) in zip(truths, matches, strict=True)]).to(own)
    overlap = generalized_box_iou(*(box_convert(b, "cxcywh", "xyxy") for b in (own, goal))).diagonal()
    distance, apart = (own - goal).abs(), 1 - overlap
    if all(truth.weights is None for truth in truths):
        return focal_loss(logits, wanted, token_mask), distance.sum(), apart.sum()
    weights = query_weights(truths, matches, logits)
    counted = torch.cat([weights[i, query] for i, (query, _) in enumerate(matches)])
    token = focal_loss(logits, wanted, token_mask, weights)
    return token, (distance * counted[:, None]).sum(), (apart * counted).sum()


def query_weights(truths: Sequence[Truth], matches: Sequence[Match], logits: Tensor) -> Tensor:
    """Return what each query counts, (B, Q): as much as its box, 1 without one."""
    weights = logits.new_ones(logits.shape[:2])
    for row, truth, (query, box) in zip(weights, truths, matches, strict=True):
        if truth.weights is not None:
            row[query] = truth.weights[box].to(weights)
    return weights


def denoising_loss(noisy: NoisyOutput, truths: Sequence[Truth], token_mask: Tensor) -> Tensor:
    """Return the weighed losses of queries that start from the truth, not yet divided; a box counts once."""
    of_images: list[Tensor] = []
    images = zip(truths, noisy.queries.answers, noisy.queries.repeats, strict=True)
    for i, (truth, answer, repeats) in enumerate(images):
        own = slice(i, i + 1), slice(2 * len(answer[0]))
        parts = [query_losses(layer[own], [truth], [answer], token_mask[i : i + 1]) for layer in noisy.layers]
        of_images += weighed(torch.stack(column).sum() / repeats for column in zip(*parts, strict=True)).values()
    return torch.stack(of_images).sum()
