"""What LVIS adds to COCO: how frequent a class is, and which classes are judged in an image (arXiv 1908.03195)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from glip_adapt.data.entries import entries_of

IMAGE_KEYS = ("neg_category_ids", "not_exhaustive_category_ids")
_CATEGORY_KEY = "frequency"


@dataclass(frozen=True)
class Federated:
    """Entries of an LVIS file that scoring needs.

    Attributes:
        categories: category id → ``r``, ``c`` or ``f``.
        images: image id → lists of category ids: known to be absent, and not labelled exhaustively.
    """

    categories: Mapping[int, str]
    images: Mapping[int | str, Mapping[str, list[int]]]

    def of_category(self, category_id: int) -> dict[str, Any]:
        """Return what is added to a category; nothing for one that is not in the file."""
        return {_CATEGORY_KEY: self.categories[category_id]} if category_id in self.categories else {}

    def of_image(self, image_id: int | str) -> Mapping[str, list[int]]:
        """Return what is added to an image."""
        return self.images.get(image_id, {})


def federated_of(document: Mapping[str, Any]) -> Federated | None:
    """Return what a sound document adds to COCO, or None if it adds no frequency."""
    categories = {e["id"]: e[_CATEGORY_KEY] for e in entries_of(document, "categories") if _CATEGORY_KEY in e}
    if not categories:
        return None
    images = entries_of(document, "images")
    return Federated(categories, {e["id"]: {key: e[key] for key in IMAGE_KEYS if key in e} for e in images})
