"""Boxes of several views of an image, merged.

As ``im_detect_bbox_aug`` in maskrcnn_benchmark/data/datasets/evaluation/box_aug.py of the public code: the views hand
on what they have before suppression, and overlapping boxes of a class are merged in pixels of the image.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from torchvision.ops import nms

from glip_adapt.core import boxes
from glip_adapt.core.settings import Merging
from glip_adapt.core.structures import Detections, SizeHW, merge
from glip_adapt.data.transforms import ShownView

MERGED_IOU = 0.6
MAX_MERGED = 1000  # boxes of an image, from one caption
LEAST_SCORE = 0.05  # of what a vote leaves beside its mean

Merger = Callable[[Detections, float], Detections]


def in_image(found: Detections, shown: ShownView, seen_hw: SizeHW, size_hw: SizeHW, last_pixel: float) -> Detections:
    """Return boxes of a view, in its range of areas, in pixels of the image.

    Args:
        found: with the corners of the family, in pixels of the view.
        shown: the view.
        seen_hw: its (height, width).
        size_hw: (height, width) of the image.
        last_pixel: of the family, see ``Network``.
    """
    sides = found.boxes_xyxy[:, 2:] - found.boxes_xyxy[:, :2] + last_pixel
    area, (least, most) = sides.prod(-1), shown.areas
    found = found.select((area > least**2) & (area < most**2))
    left, top, right, bottom = shown.view.part_of(size_hw)
    edges = found.boxes_xyxy
    if shown.view.flip:
        edges = boxes.flip_horizontal(edges, seen_hw[1] + 1 - last_pixel)
    edges = boxes.scale(edges, seen_hw, (bottom - top, right - left))
    return replace(found, boxes_xyxy=edges + edges.new_tensor((left, top, left, top)))


def merge_views(found: Detections, merging: Merging, last_pixel: float) -> Detections:
    """Return boxes of several views, best first, merged class by class; corners become edges."""
    merged = [MERGERS[merging](found.select(found.labels == label), last_pixel) for label in found.labels.unique()]
    together = merge([*merged, found.select(slice(0))])
    least = together.scores[MAX_MERGED - 1 : MAX_MERGED].sum()  # 0 if there are fewer
    kept = together.select(together.scores >= least)
    return replace(kept, boxes_xyxy=kept.boxes_xyxy + kept.boxes_xyxy.new_tensor((0, 0, last_pixel, last_pixel)))


def _best(found: Detections, last_pixel: float) -> Detections:
    """Return the boxes of a class that overlap no better one; their sides are differences of corners."""
    return found.select(nms(found.boxes_xyxy, found.scores, MERGED_IOU))


def _vote(found: Detections, last_pixel: float, *, leaves_rest: bool) -> Detections:
    """Return the boxes of a class, best first, each the mean of itself and those that overlap it, weighted by score.

    Of a mean the score is the best one. With ``leaves_rest``, the boxes themselves stay as well, their scores lowered
    by how much they overlap the best one, where they reach ``LEAST_SCORE``.
    """
    kept = [found.select(slice(0))]
    rest = found
    while len(rest):
        inclusive = rest.boxes_xyxy + rest.boxes_xyxy.new_tensor((0, 0, last_pixel - 1, last_pixel - 1))
        overlap = boxes.pairwise_iou(inclusive[:1], inclusive)[0]
        joins = overlap >= MERGED_IOU
        group, rest = rest.select(joins), rest.select(~joins)
        weights = group.scores[:, None] / group.scores.sum()
        kept.append(replace(group.select(slice(1)), boxes_xyxy=(group.boxes_xyxy * weights).sum(0, keepdim=True)))
        if leaves_rest:
            lowered = replace(group, scores=group.scores * (1 - overlap[joins]))
            kept.append(lowered.select(lowered.scores >= LEAST_SCORE))
    return merge(kept)


MERGERS: dict[Merging, Merger] = {
    "best": _best,
    "vote": partial(_vote, leaves_rest=False),
    "soft_vote": partial(_vote, leaves_rest=True),
}
