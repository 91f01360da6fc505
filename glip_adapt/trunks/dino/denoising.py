"""Contrastive denoising: while training, more queries start from shifted boxes of the truth and have to find back.

DINO, arXiv 2203.03605, section 3.3. Each box gives pairs of queries: one shifted by less than half its sides, which has
to predict it, and one shifted by more, which has to predict nothing. Their answers are known, so that they learn
without matching. Numbers and rules are those of ``dn_cfg`` in configs/mm_grounding_dino of mmdetection, but for what a
query knows of its class: that is there a vector of a table, which the released weights on the Hub do not have; here it
is the mean of the tokens of the class.

Shape letters: B batch, Q queries, N noisy queries, T tokens, K classes, C channels, n boxes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torchvision.ops import box_convert

from glip_adapt.core.structures import TextFeatures
from glip_adapt.trunks.dino.truth import Match, Truth

WRONG_CLASSES = 0.25  # share of the queries that are told any class: half of label_noise_scale
MATCHED, PADDING = 0, -1  # groups of the queries that are matched, and of those that fill a batch up


@dataclass(frozen=True)
class NoisyQueries:
    """Queries of a batch that start from the truth.

    Attributes:
        content: (B, N, C) float, where they start.
        boxes: (B, N, 4) float, (centre x, centre y, width, height) in shares of the image without padding.
        groups: (B, N) int64; queries see those of their own group, which are one pair for each box, and the matched.
        answers: of each image, the queries with a box to predict, half of them all, and these boxes.
        repeats: of each image, how many groups it has, so how often each of its boxes counts.
    """

    content: Tensor
    boxes: Tensor
    groups: Tensor
    answers: tuple[Match, ...]
    repeats: tuple[int, ...]

    def visible(self, matched: int) -> Tensor:
        """Return (B, Q, Q) bool, which of ``matched`` queries and these sees which: no group tells another the truth.

        What the matched queries predict does not depend on the noisy ones.
        """
        groups = torch.cat((self.groups.new_full((len(self.groups), matched), MATCHED), self.groups), dim=1)
        seen = groups.unsqueeze(1)
        return (seen == MATCHED) | (seen == groups.unsqueeze(2))


def noisy_queries(truths: Sequence[Truth], text: TextFeatures, pairs: int) -> NoisyQueries:
    """Return queries around the boxes of each image; numbers come from torch's generator on the CPU.

    Args:
        truths: of B images.
        text: after the encoder, (B, T, C).
        pairs: of queries for each image, about: as many groups as that allows, and at least one of ``pairs`` boxes.
    """
    token_maps = text.token_map.expand(len(truths), -1, -1)
    images = [_of_image(truth, pairs, classes) for truth, classes in zip(truths, token_maps, strict=True)]
    told, boxes, groups, answers, repeats = zip(*images, strict=True)
    tokens = pad_sequence(list(told), batch_first=True)  # (B, N, T)
    content = tokens.to(text.features) @ text.features.detach() / tokens.sum(-1, keepdim=True).clamp(min=1)
    return NoisyQueries(
        content=content,
        boxes=pad_sequence(list(boxes), batch_first=True, padding_value=0.5),
        groups=pad_sequence(list(groups), batch_first=True, padding_value=PADDING),
        answers=answers,
        repeats=repeats,
    )


def _of_image(truth: Truth, pairs: int, classes: Tensor) -> tuple[Tensor, Tensor, Tensor, Match, int]:
    """Return the tokens of the classes that queries are told, their boxes, groups and answers, and ``repeats``."""
    device, total = truth.boxes.device, len(truth.boxes)
    drawn = torch.randperm(total)[:pairs] if total > pairs else torch.arange(total)
    groups = pairs // max(1, len(drawn))
    box = drawn.repeat(2 * groups)  # group by group, in each first the near ones and then the far ones
    is_far = torch.tensor((False, True)).repeat_interleave(len(drawn)).repeat(groups)
    boxes = shift(truth.boxes[box.to(device)], is_far)
    any_class = classes[torch.randint(len(classes), box.shape).to(device)]
    is_wrong = (torch.rand(len(box)) < WRONG_CLASSES).to(device)
    told = torch.where(is_wrong.unsqueeze(-1), any_class, truth.tokens[box.to(device)])
    near = (~is_far).nonzero().squeeze(-1)
    group = torch.arange(1, groups + 1).repeat_interleave(2 * len(drawn))
    return told, boxes, group.to(device), (near.to(device), box[near].to(device)), groups


def shift(boxes: Tensor, is_far: Tensor) -> Tensor:
    """Return boxes (n, 4) whose edges moved by up to half a side; where ``is_far``, by half a side to a whole one."""
    corners = box_convert(boxes, "cxcywh", "xyxy")
    share = torch.rand(corners.shape) + is_far.unsqueeze(-1)
    sign = torch.randint(2, corners.shape) * 2 - 1
    moved = corners + (share * sign).to(boxes) * boxes[:, 2:].repeat(1, 2) / 2
    first, second = moved.clamp(0, 1).chunk(2, dim=-1)  # edges may have passed each other
    return box_convert(
        torch.cat((torch.minimum(first, second), torch.maximum(first, second)), dim=-1), "xyxy", "cxcywh"
    )
