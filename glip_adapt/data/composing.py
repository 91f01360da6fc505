"""Few labelled images made into many: compositions of them are drawn before training.

Training sees a finite set of images, so that features of frozen stages can be kept. What a composition is, and how its
pixels are made, is in ``data/composed.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from glip_adapt.core import boxes
from glip_adapt.core.settings import Compositions
from glip_adapt.core.sizes import SizeHW
from glip_adapt.core.structures import Target
from glip_adapt.data.composed import ComposedRecord, Composition, Edges, Paste
from glip_adapt.data.split import ImageRecord, Split

BLENDED = (0.35, 0.5)
"""Weight of the second image of a blend."""
SHOWN = (0.5, 1.0)
"""Area of the part that is shown, of the whole."""
PASTED = (1, 4)
"""Objects that are pasted at once, as far as there is room."""
PASTED_SIZE = (0.7, 1.4)
"""Sides of a pasted object, of its own."""
COLOURS = ((-0.05, 0.05), (0.5, 1.5), (0.65, 1.35))
"""Turns that are added to the hue; factors of saturation and of brightness."""
WHOLE, GONE = 0.7, 0.05
"""Area of a box inside of a part, of the whole, from which it counts as whole, and up to which it counts as absent."""
TRIES = 10
MARGIN = 2
"""Pixels around a pasted object that come with it."""
LEAST_SIDE = 6
"""Pixels, with the margins; a smaller object is not pasted."""


def composed(split: Split, settings: Compositions, seed: int) -> Split:
    """Return a split with ``settings.per_image`` compositions of each of its images behind them.

    The images themselves stay. The draws depend on the images, the settings and the seed, and on nothing else.

    Raises:
        FileNotFoundError, ValueError: if an image is missing or cannot be read.
    """
    dice = np.random.default_rng(seed)
    objects = _objects(split.records)
    made = [
        _compose(record, number, split.records, objects, settings, dice)
        for record in split.records
        for number in range(settings.per_image)
    ]
    return replace(split, records=(*split.records, *made))


@dataclass(frozen=True)
class _Labelled:
    """A box of an image: its edges, its class, and what it counts."""

    edges: tuple[float, ...]
    label: int
    weight: float


@dataclass(frozen=True)
class _Object:
    """The pixels ``part`` around a box of an image, and all boxes that they show."""

    source: ImageRecord
    part: Edges
    shown: tuple[_Labelled, ...]

    def moved(self, place: Edges) -> list[_Labelled]:
        """Return its boxes if its pixels are laid over ``place``."""
        left, top, right, bottom = self.part
        across, down = (place[2] - place[0]) / (right - left), (place[3] - place[1]) / (bottom - top)
        scales, corner = (across, down) * 2, (left, top) * 2
        return [
            replace(
                box,
                edges=tuple(
                    min(max((edge - start) * scale + low, low), high)
                    for edge, start, scale, low, high in zip(
                        box.edges, corner, scales, place[:2] * 2, place[2:] * 2, strict=True
                    )
                ),
            )
            for box in self.shown
        ]


def _objects(records: Sequence[ImageRecord]) -> list[list[_Object]]:
    """Return the objects of some images that can be pasted, class by class.

    Around a box there may be others, such as a helmet within a person: they come along. A box that they are cut off
    from stays where it is.
    """
    found: dict[int, list[_Object]] = {}
    for record in records:
        boxes_of = _Boxes.of(record.target)
        labelled = [
            _Labelled(tuple(edges), label, weight)
            for edges, label, weight in zip(*(part.tolist() for part in vars(boxes_of).values()), strict=True)
        ]
        for one in labelled:
            part = _part_around(one.edges, record.header.size_hw)
            shares = _shares_inside(boxes_of.edges, part).tolist()
            others = [(box, share) for box, share in zip(labelled, shares, strict=True) if box is not one]
            if not any(GONE < share < WHOLE for _, share in others):
                whole = [box for box, share in others if share >= WHOLE]
                found.setdefault(one.label, []).append(_Object(record, part, (one, *whole)))
    return [found[label] for label in sorted(found)]


def _part_around(edges: Sequence[float], size_hw: SizeHW) -> Edges:
    """Return the pixels of a box and a margin, as far as the image goes."""
    left, top, right, bottom = map(round, edges)
    return (
        max(0, left - MARGIN),
        max(0, top - MARGIN),
        min(size_hw[1], right + MARGIN),
        min(size_hw[0], bottom + MARGIN),
    )


def _compose(
    record: ImageRecord,
    number: int,
    records: Sequence[ImageRecord],
    objects: Sequence[Sequence[_Object]],
    settings: Compositions,
    dice: np.random.Generator,
) -> ComposedRecord:
    """Draw one composition of an image, and move its boxes along."""
    size_hw = record.header.size_hw
    shown, blended, pasted, colours = _Boxes.of(record.target), None, [], None
    part = (0, 0, size_hw[1], size_hw[0])
    others = [other for other in records if other is not record]
    if dice.random() < settings.blend and others:
        second = others[int(dice.integers(len(others)))]
        blended = (second, float(dice.uniform(*BLENDED)))
        shown = shown.joined(_Boxes.of(second.target).scaled(second.header.size_hw, size_hw))
    if dice.random() < settings.crop:
        part = _draw_part(shown.edges, size_hw, dice)
        shown = shown.inside(part)
    if objects and dice.random() < settings.paste:
        placed = _draw_places(objects, shown.edges, (part[3] - part[1], part[2] - part[0]), dice)
        pasted = [Paste(one.source, one.part, place) for one, place in placed]
        shown = shown.joined(_Boxes.at(placed))
    if dice.random() < settings.colour:
        hue, saturation, brightness = (float(dice.uniform(*limits)) for limits in COLOURS)
        colours = (hue, saturation, brightness)
    shown = shown.above_a_pixel()
    return ComposedRecord(
        image_id=f"{record.image_id}, composition {number + 1}",
        path=record.path,
        size_hw=record.size_hw,
        learned=Target(boxes.from_edges(shown.edges), shown.labels, shown.weights),
        composition=Composition(part, blended, tuple(pasted), colours),
    )


@dataclass(frozen=True)
class _Boxes:
    """Boxes as edges (N, 4), their labels (N,) and weights (N,)."""

    edges: Tensor
    labels: Tensor
    weights: Tensor

    @classmethod
    def of(cls, target: Target) -> _Boxes:
        weights = torch.ones(len(target)) if target.weights is None else target.weights
        return cls(boxes.to_edges(target.boxes_xyxy), target.labels, weights)

    @classmethod
    def at(cls, placed: Sequence[tuple[_Object, Edges]]) -> _Boxes:
        moved = [box for one, place in placed for box in one.moved(place)]
        return cls(
            torch.tensor([box.edges for box in moved]).reshape(-1, 4),
            torch.tensor([box.label for box in moved], dtype=torch.int64),
            torch.tensor([box.weight for box in moved]),
        )

    def joined(self, others: _Boxes) -> _Boxes:
        return _Boxes(*(torch.cat(pair) for pair in zip(vars(self).values(), vars(others).values(), strict=True)))

    def scaled(self, from_hw: SizeHW, to_hw: SizeHW) -> _Boxes:
        return replace(self, edges=boxes.scale(self.edges, from_hw, to_hw))

    def inside(self, part: Edges) -> _Boxes:
        """Return those that a part shows, in its pixels."""
        left, top, right, bottom = part
        kept = _shares_inside(self.edges, part) >= WHOLE
        moved = (self.edges - torch.tensor([left, top] * 2)).clamp(min=0)
        moved = moved.minimum(torch.tensor([right - left, bottom - top] * 2))
        return _Boxes(moved, self.labels, self.weights).where(kept)

    def above_a_pixel(self) -> _Boxes:
        """Return those with both sides above one pixel, as a training image has no others."""
        return self.where((self.edges[:, 2:] - self.edges[:, :2] > 1).all(dim=1))

    def where(self, kept: Tensor) -> _Boxes:
        return _Boxes(self.edges[kept], self.labels[kept], self.weights[kept])


def _draw_part(edges: Tensor, size_hw: SizeHW, dice: np.random.Generator) -> Edges:
    """Return a part of an image that shows a box and cuts off little of any; all of it if none was drawn."""
    height, width = size_hw
    for _ in range(TRIES):
        side = float(np.sqrt(dice.uniform(*SHOWN)))
        part_width, part_height = max(1, int(side * width)), max(1, int(side * height))
        left = int(dice.integers(width - part_width + 1))
        top = int(dice.integers(height - part_height + 1))
        part = (left, top, left + part_width, top + part_height)
        shares = _shares_inside(edges, part)
        if bool((shares >= WHOLE).any()) and not bool(((shares > GONE) & (shares < WHOLE)).any()):
            return part
    return (0, 0, width, height)


def _shares_inside(edges: Tensor, part: Edges) -> Tensor:
    """Return the area of each box (N, 4) that a part shows, of the whole, (N,)."""
    left, top, right, bottom = part
    cut = edges.maximum(torch.tensor([left, top, left, top])).minimum(torch.tensor([right, bottom, right, bottom]))
    return _areas(cut) / _areas(edges).clamp(min=1e-6)


def _areas(edges: Tensor) -> Tensor:
    return (edges[:, 2:] - edges[:, :2]).clamp(min=0).prod(dim=1)


def _draw_places(
    objects: Sequence[Sequence[_Object]], edges: Tensor, size_hw: SizeHW, dice: np.random.Generator
) -> list[tuple[_Object, Edges]]:
    """Return objects, and places without a box for them.

    Classes are drawn alike, so that rare ones are seen as often as others.
    """
    height, width = size_hw
    placed: list[tuple[_Object, Edges]] = []
    for _ in range(int(dice.integers(*PASTED, endpoint=True))):
        of_class = objects[int(dice.integers(len(objects)))]
        drawn = of_class[int(dice.integers(len(of_class)))]
        left, top, right, bottom = drawn.part
        size = float(dice.uniform(*PASTED_SIZE))
        across, down = round(size * (right - left)), round(size * (bottom - top))
        if not (LEAST_SIDE <= across <= width and LEAST_SIDE <= down <= height):
            continue
        for _ in range(TRIES):
            x, y = int(dice.integers(width - across + 1)), int(dice.integers(height - down + 1))
            place = (x, y, x + across, y + down)
            if not bool((_shares_inside(edges, place) > 0).any()):
                placed.append((drawn, place))
                edges = torch.cat([edges, torch.tensor([place], dtype=edges.dtype)])
                break
    return placed
