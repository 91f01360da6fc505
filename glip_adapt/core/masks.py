"""Masks of objects as run lengths, in the compressed form of COCO: a few hundred bytes each, however large the image.

Letters: H W pixels of the image, N and M masks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from glip_adapt.core.sizes import SizeHW

Rle = dict[str, Any]
"""Run lengths of COCO: ``{"size": [height, width], "counts": text}``; JSON can hold it."""


@dataclass(frozen=True)
class Mask:
    """The pixels of one object.

    Attributes:
        size_hw: (height, width) of the image in pixels.
        counts: compressed run lengths, column by column, as COCO writes them.
    """

    size_hw: SizeHW
    counts: str

    @classmethod
    def of(cls, pixels: NDArray[np.bool_]) -> Mask:
        """Return the mask of an array (H, W) that is true on the object."""
        rle = coco_mask.encode(np.asfortranarray(pixels, dtype=np.uint8))
        return cls((pixels.shape[0], pixels.shape[1]), rle["counts"].decode("ascii"))

    @property
    def area(self) -> int:
        """Number of pixels."""
        return int(coco_mask.area(self.to_rle()))

    def to_rle(self) -> Rle:
        """Return the mask as COCO files and results hold it."""
        return {"size": list(self.size_hw), "counts": self.counts}

    def to_array(self) -> NDArray[np.bool_]:
        """Return an array (H, W) that is true on the object."""
        return coco_mask.decode(self.to_rle()).astype(bool)

    def to_polygons(self) -> list[list[float]]:
        """Return the outline of each part as COCO writes polygons: [x1, y1, x2, y2, …], along the edges of pixels.

        Pixels that share a side are one part. Holes are filled, since polygons of COCO have none.
        """
        return [[float(value) for point in outline for value in point] for outline in _outlines(self.to_array())]


def read_rle(segmentation: Any, size_hw: SizeHW) -> Rle | None:
    """Return the ``segmentation`` of a COCO file as compressed run lengths; None if it is none.

    Args:
        segmentation: polygons [[x1, y1, …], …], or run lengths, compressed or not.
        size_hw: (height, width) of the image in pixels.
    """
    if isinstance(segmentation, list) and segmentation and all(map(_is_polygon, segmentation)):
        return _as_text(coco_mask.merge(coco_mask.frPyObjects(segmentation, *size_hw)))
    if not isinstance(segmentation, dict) or segmentation.get("size") != list(size_hw):
        return None
    counts = segmentation.get("counts")
    if isinstance(counts, list) and all(isinstance(count, int) and count >= 0 for count in counts):
        is_whole = sum(counts) == size_hw[0] * size_hw[1]
        return _as_text(coco_mask.frPyObjects(segmentation, *size_hw)) if is_whole else None
    return segmentation if isinstance(counts, str) and _covers(counts, size_hw) else None


def areas(rles: Sequence[Rle]) -> NDArray[np.float64]:
    """Return the number of pixels of each mask, (N,)."""
    # One by one: pycocotools counts the masks of a list in eight bits, and fails at more than 255.
    return np.array([coco_mask.area(rle) for rle in rles], dtype=np.float64)


def overlaps(found: Sequence[Rle], truth: Sequence[Rle], crowd: Sequence[bool]) -> NDArray[np.float64]:
    """Return intersection over union, (N, M); with a crowd region (M,), as a share of the found mask alone."""
    shares = coco_mask.iou(list(found), list(truth), [int(flag) for flag in crowd])  # a list if either is empty
    return np.asarray(shares, dtype=np.float64).reshape(len(found), len(truth))


def _as_text(rle: Mapping[str, Any]) -> Rle:
    return {"size": list(rle["size"]), "counts": rle["counts"].decode("ascii")}


def _is_polygon(points: Any) -> bool:
    return (
        isinstance(points, list)
        and len(points) >= 6
        and len(points) % 2 == 0
        and all(type(value) in (int, float) and abs(value) < float("inf") for value in points)
    )


def _covers(counts: str, size_hw: SizeHW) -> bool:
    """Tell whether compressed run lengths add up to an image; the decoder writes where they lead, checking nothing.

    Each character has five bits of a number and a bit that says whether more follow. From the fourth number on, a
    number is the difference to the last but one.
    """
    lengths: list[int] = []
    value = shift = 0
    for character in counts:
        bits = ord(character) - 48
        if not 0 <= bits < 64 or shift > 60:
            return False
        value |= (bits & 0x1F) << shift
        shift += 5
        if not bits & 0x20:
            if bits & 0x10:  # a negative number
                value -= 1 << shift
            lengths.append(value + (lengths[-2] if len(lengths) > 2 else 0))
            value = shift = 0
    return shift == 0 and min(lengths, default=0) >= 0 and sum(lengths) == size_hw[0] * size_hw[1]


def _outlines(pixels: NDArray[np.bool_]) -> list[list[tuple[int, int]]]:
    """Return the outer outline of each part, clockwise, as corners (x, y) of pixels.

    Sides of pixels on the border point so that the object lies to their right. They are linked into closed lines;
    where two parts touch at a corner, a line turns right and stays with its part.
    """
    padded = np.pad(pixels, 1)
    nexts: dict[tuple[int, int], list[tuple[int, int]]] = {}  # corner → directions in which a side leaves it
    inside = padded[1:-1, 1:-1]
    sides = (  # neighbour outside, first corner of the side relative to the pixel, direction
        (padded[:-2, 1:-1], (0, 0), (1, 0)),
        (padded[1:-1, 2:], (1, 0), (0, 1)),
        (padded[2:, 1:-1], (1, 1), (-1, 0)),
        (padded[1:-1, :-2], (0, 1), (0, -1)),
    )
    for neighbour, (right, below), direction in sides:
        for y, x in np.argwhere(inside & ~neighbour).tolist():
            nexts.setdefault((x + right, y + below), []).append(direction)
    lines = []
    for start in sorted(nexts):
        while nexts[start]:
            line = _follow(nexts, start)
            if sum(x1 * y2 - x2 * y1 for (x1, y1), (x2, y2) in zip(line, line[1:] + line[:1], strict=True)) > 0:
                lines.append(line)  # clockwise, with y downwards; around a hole it goes the other way
    return lines


def _follow(nexts: dict[tuple[int, int], list[tuple[int, int]]], start: tuple[int, int]) -> list[tuple[int, int]]:
    """Take the sides of the line through its leftmost corner out of ``nexts``; return the corners where it turns."""
    point, heading = start, (0, 0)
    corners: list[tuple[int, int]] = []
    while not corners or point != start:
        choices = nexts[point]
        right = (-heading[1], heading[0])
        direction = right if right in choices else choices[0]
        choices.remove(direction)
        if direction != heading:
            corners.append(point)
        heading, point = direction, (point[0] + direction[0], point[1] + direction[1])
    return corners
