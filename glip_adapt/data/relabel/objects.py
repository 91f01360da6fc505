"""Objects of one image before and after a change of its labels: which are the same."""

from __future__ import annotations

from collections.abc import Sequence

from glip_adapt.data.documents import BoxXYWH

NamedBox = tuple[str, BoxXYWH]
"""Class name and box of an object."""

_SAME = 0.01  # pixels; less than anyone moves a box


def same_objects(old: Sequence[NamedBox], new: Sequence[NamedBox]) -> list[int | None]:
    """Return for each new object the position of an old one of the same class and box, each taken once, or None."""
    left = dict(enumerate(old))
    places: list[int | None] = []
    for name, box in new:
        place = next((p for p, (other, there) in left.items() if other == name and _is_same(box, there)), None)
        if place is not None:
            del left[place]
        places.append(place)
    return places


def _is_same(one: BoxXYWH, other: BoxXYWH) -> bool:
    return max(abs(a - b) for a, b in zip(one, other, strict=True)) < _SAME
